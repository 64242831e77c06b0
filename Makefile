# strata. `make help` says what there is.
CC      ?= gcc
CXX     ?= g++
MPICC   ?= mpicc
ARCH    ?= native
OPT     ?= -O3
BUILD   ?= build
SANITIZE ?= 0

PKGS    := hdf5-openmpi jansson libpng libjpeg openblas sentencepiece
WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
CPPFLAGS += -Iinclude -I/usr/include/iniparser -D_GNU_SOURCE $(shell pkg-config --cflags $(PKGS))
CFLAGS  += -std=c11 $(OPT) -g -march=$(ARCH) -ffp-contract=off -fopenmp -fno-math-errno $(WARN)
CXXFLAGS += -std=c++17 -O2 -g -Wall -Wextra
LDLIBS  += $(shell pkg-config --libs hdf5-openmpi jansson libpng libjpeg openblas) -lhdf5_hl \
           -liniparser -lsentencepiece -lstdc++ -lm -lpthread
ifeq ($(SANITIZE),1)
BUILD   := build/sanitize
OPT     := -O1
CFLAGS  += -fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=undefined
CXXFLAGS += -fsanitize=address,undefined -fno-omit-frame-pointer
LDFLAGS += -fsanitize=address,undefined
endif

MODULES := base config comm backend backend/measure tensor nn model pipeline optim data checkpoint plan train cli
SRC     := $(filter-out src/cli/main.c,$(foreach m,$(MODULES),$(wildcard src/$(m)/*.c)))
CXXSRC  := $(wildcard src/data/*.cc)
# The CPU operations are compiled twice: working type float and double.
CPUSRC  := $(wildcard src/backend/cpu/*.c)
OBJ     := $(SRC:src/%.c=$(BUILD)/%.o) $(CXXSRC:src/%.cc=$(BUILD)/%.o) \
           $(CPUSRC:src/%.c=$(BUILD)/%.f32.o) $(CPUSRC:src/%.c=$(BUILD)/%.f64.o)
LIB     := $(BUILD)/libstrata.a

TESTSRC := $(wildcard tests/unit/test_*.c tests/op/test_*.c tests/mpi/test_*.c tests/equal/test_*.c)
TESTS   := $(TESTSRC:%.c=$(BUILD)/%)

.PHONY: all lib tests clean help
all: $(BUILD)/strata ## build/strata (default)
lib: $(LIB)
tests: $(TESTS) $(BUILD)/strata ## build every test program

$(BUILD)/%.o: src/%.c
	@mkdir -p $(@D)
	OMPI_CC=$(CC) $(MPICC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@
$(BUILD)/%.f32.o: src/%.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -DSTRATA_REAL=32 -MMD -MP -c $< -o $@
$(BUILD)/%.f64.o: src/%.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -DSTRATA_REAL=64 -MMD -MP -c $< -o $@
$(BUILD)/%.o: src/%.cc
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) -MMD -MP -c $< -o $@
$(LIB): $(OBJ)
	@rm -f $@
	ar rcs $@ $^
$(BUILD)/strata: $(BUILD)/cli/main.o $(LIB)
	OMPI_CC=$(CC) $(MPICC) $(CFLAGS) $(LDFLAGS) $^ $(LDLIBS) -o $@
$(BUILD)/tests/%: tests/%.c $(LIB)
	@mkdir -p $(@D)
	OMPI_CC=$(CC) $(MPICC) $(CPPFLAGS) -Itests $(CFLAGS) $(LDFLAGS) $< $(LIB) -lcmocka $(LDLIBS) -MMD -MP -o $@
clean: ## remove everything built
	rm -rf build
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16
-include $(OBJ:.o=.d) $(TESTS:=.d)
