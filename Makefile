# strata. `make help` says what there is.
#
# One Makefile, no Makefiles below it. Objects are found by wildcard: a new file in a room of src/ or
# a new tests/*/test_*.c needs no line here.
CC       ?= gcc
CXX      ?= g++
MPICC    ?= mpicc
ARCH     ?= native
OPT      ?= -O3
BUILD    ?= build
SANITIZE ?= 0
V        ?= 0
PREFIX   ?= /usr/local
RANKS    ?= 2
JOBS     ?= 2
FUZZ     ?= 0
FUZZ_SECONDS ?= 30
FUZZ_JOBS    ?= 1
FUZZ_ONLY    ?=

# ---- packages (Debian 12) ----------------------------------------------------------------------
PACKAGES      := gcc g++ make pkg-config libopenmpi-dev openmpi-bin libhdf5-openmpi-dev hdf5-tools \
                 libiniparser-dev libopenblas-pthread-dev libjansson-dev libpng-dev \
                 libjpeg62-turbo-dev libwebp-dev libgif-dev zlib1g-dev libsentencepiece-dev
# What a test needs is installed by `make check`; a test that is skipped all the same has failed unless
# tests/skips.txt says why it may be.
TEST_PACKAGES := libcmocka-dev python3 python3-h5py slurm-wlm clang-format-14
DEMO_PACKAGES := tuxpaint-stamps-default sentencepiece
LINT_PACKAGES := clang-14 clang-format-14 clang-tidy-14
FUZZ_PACKAGES := clang-14 libclang-rt-14-dev libomp-14-dev

# These goals compile nothing themselves, so they must work before the packages are there.
BARE := help deps deps-demo deps-lint deps-fuzz clean check check-kernels check-long demo lint format fuzz
ifneq ($(filter-out $(BARE),$(or $(MAKECMDGOALS),all)),)
PKGS      := hdf5-openmpi jansson libpng libjpeg libwebp libwebpdemux libgif zlib \
             openblas sentencepiece
HAVE_PKGS := $(shell pkg-config --exists $(PKGS) 2>/dev/null && command -v $(MPICC) >/dev/null && \
               test -e /usr/include/iniparser/iniparser.h && echo yes)
ifneq ($(HAVE_PKGS),yes)
$(error Packages that strata is built from are missing ($(PKGS), iniparser, $(MPICC)): run `make deps` first)
endif
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS))
PKG_LIBS   := $(shell pkg-config --libs hdf5-openmpi jansson libpng libjpeg libwebp libwebpdemux libgif zlib openblas)
endif

# ---- flags ---------------------------------------------------------------------------------------
WARN     := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
CPPFLAGS += -Iinclude -I/usr/include/iniparser -D_GNU_SOURCE $(PKG_CFLAGS)
CFLAGS   += -std=c11 $(OPT) -g -march=$(ARCH) -ffp-contract=off -fopenmp -fno-math-errno $(WARN)
CXXFLAGS += -std=c++17 -O2 -g -Wall -Wextra
LDLIBS   += $(PKG_LIBS) -lhdf5_hl -liniparser -lsentencepiece -lstdc++ -lm -lpthread
ifeq ($(SANITIZE),1)
BUILD    := build/sanitize
OPT      := -O1
SAN      := -fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=undefined
CFLAGS   += $(SAN)
CXXFLAGS += $(SAN)
LDFLAGS  += -fsanitize=address,undefined
endif
ifeq ($(FUZZ),1)
# clang 14 has no type _Float16 here, but __fp16, which is stored alike. libgomp is what OpenBLAS and gcc
# use; without -fopenmp nothing runs in threads.
BUILD    := build/fuzz
CC       := clang-14
CXX      := clang++-14
OPT      := -O2
SAN      := -fsanitize=fuzzer-no-link,address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=undefined
CFLAGS   := $(filter-out -fopenmp,$(CFLAGS)) $(SAN) -Wno-unknown-pragmas -Wno-unused-command-line-argument \
            -D_Float16=__fp16 -Xclang -fallow-half-arguments-and-returns
CXXFLAGS += $(SAN) -fno-sanitize=vptr,function
LDFLAGS  += -fsanitize=fuzzer,address,undefined
LDLIBS   += -l:libgomp.so.1
# Names of keys are compared with the whole table: to note each comparison takes half of the time.
$(BUILD)/config/%.o: CFLAGS += -fno-sanitize-coverage=trace-cmp
endif

# ---- what is built from what -----------------------------------------------------------------------
MODULES := base h5 config comm backend backend/measure tensor nn model pipeline optim data checkpoint plan train cli
SRC     := $(filter-out src/cli/main.c,$(foreach m,$(MODULES),$(wildcard src/$(m)/*.c)))
CXXSRC  := $(wildcard src/data/*.cc)
# The CPU operations are compiled twice: working type float and double.
CPUSRC  := $(wildcard src/backend/cpu/*.c)
OBJ     := $(SRC:src/%.c=$(BUILD)/%.o) $(CXXSRC:src/%.cc=$(BUILD)/%.o) \
           $(CPUSRC:src/%.c=$(BUILD)/%.f32.o) $(CPUSRC:src/%.c=$(BUILD)/%.f64.o)
MAIN    := $(BUILD)/cli/main.o
LIB     := $(BUILD)/libstrata.a

TESTSRC  := $(wildcard tests/unit/test_*.c tests/op/test_*.c tests/mpi/test_*.c tests/equal/test_*.c)
TESTS    := $(TESTSRC:%.c=$(BUILD)/%)
FUZZSRC  := $(wildcard tests/fuzz/fuzz_*.c)
FUZZERS  := $(FUZZSRC:%.c=$(BUILD)/%)
# Where libFuzzer brings a main of its own, stored files are not what is run.
FUZZKIT  := $(BUILD)/tests/fuzz/target.o $(if $(filter 1,$(FUZZ)),,$(BUILD)/tests/fuzz/replay.o)
BENCHSRC := $(wildcard tests/bench/bench_*.c)
BENCHES  := $(BENCHSRC:%.c=$(BUILD)/%)
SANE     := SANITIZE=$(SANITIZE) BUILD=$(BUILD)
# The program with its fault points switched on: only the files that have some are compiled again.
FAULTSRC := $(shell grep -l 'fault\.h' $(SRC))
FAULTOBJ := $(FAULTSRC:src/%.c=$(BUILD)/faults/%.o) \
            $(filter-out $(FAULTSRC:src/%.c=$(BUILD)/%.o),$(OBJ))
FAULTS   := $(BUILD)/faults/strata $(BUILD)/faults/list_points

.PHONY: all lib tests fuzzers fuzz faults deps deps-fuzz deps-demo deps-lint check check-kernels check-long demo bench lint format doc install clean help
.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
all: $(BUILD)/strata ## build/strata (the default)
lib: $(LIB) ## everything but the main program, as a static library
tests: $(TESTS) $(FUZZERS) $(FAULTS) $(BUILD)/strata ## build every test program
fuzzers: $(FUZZERS)
faults: $(FAULTS) ## build/faults/strata, which dies where the variable FAULT says

# One short line per file; V=1 shows the commands.
say = $(if $(filter 1,$(V)),,@echo "  $(1)	$@";)
$(BUILD)/%.o: src/%.c
	@mkdir -p $(@D)
	$(call say,CC)OMPI_CC=$(CC) $(MPICC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@
# What the program was built from is known when all else is built; nothing is built because of it alone.
BUILT := $(BUILD)/base/build.o
$(BUILT): $(filter-out $(BUILT),$(OBJ))
ifneq ($(wildcard .git),)
$(BUILT): private CPPFLAGS += -DSTRATA_GIT_SHA='"$(shell git rev-parse HEAD 2>/dev/null || echo unknown)"' \
  -DSTRATA_GIT_DIRTY='"$(shell test -z "$$(git status --porcelain -uno 2>/dev/null)" && echo false || echo true)"'
endif
$(BUILT): private CPPFLAGS += -DSTRATA_FLAGS='"$(strip $(CFLAGS))"'
$(BUILD)/%.f32.o: src/%.c
	@mkdir -p $(@D)
	$(call say,CC)$(CC) $(CPPFLAGS) $(CFLAGS) -DSTRATA_REAL=32 -MMD -MP -c $< -o $@
$(BUILD)/%.f64.o: src/%.c
	@mkdir -p $(@D)
	$(call say,CC)$(CC) $(CPPFLAGS) $(CFLAGS) -DSTRATA_REAL=64 -MMD -MP -c $< -o $@
$(BUILD)/%.o: src/%.cc
	@mkdir -p $(@D)
	$(call say,CXX)$(CXX) $(CPPFLAGS) $(CXXFLAGS) -MMD -MP -c $< -o $@
# Removed first: ar would keep the objects of files that are gone.
$(LIB): $(OBJ)
	@rm -f $@
	$(call say,AR)ar rcs $@ $^
$(BUILD)/strata: $(MAIN) $(LIB)
	$(call say,LD)OMPI_CC=$(CC) $(MPICC) $(CFLAGS) $(LDFLAGS) $^ $(LDLIBS) -o $@
$(BUILD)/faults/%.o: src/%.c
	@mkdir -p $(@D)
	$(call say,CC)OMPI_CC=$(CC) $(MPICC) -DSTRATA_FAULTS $(CPPFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@
$(BUILD)/faults/strata: $(MAIN) $(FAULTOBJ)
	$(call say,LD)OMPI_CC=$(CC) $(MPICC) $(CFLAGS) $(LDFLAGS) $^ $(LDLIBS) -o $@
$(BUILD)/faults/list_points: tests/faults/list_points.c $(FAULTOBJ)
	$(call say,LD)OMPI_CC=$(CC) $(MPICC) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $^ $(LDLIBS) -MMD -MP -o $@
# Compiled apart from linking: a change of the library compiles no test again.
$(BUILD)/tests/%.o: tests/%.c
	@mkdir -p $(@D)
	$(call say,CC)OMPI_CC=$(CC) $(MPICC) $(CPPFLAGS) -Itests $(CFLAGS) -MMD -MP -c $< -o $@
$(TESTS) $(BENCHES): %: %.o $(LIB)
	$(call say,LD)OMPI_CC=$(CC) $(MPICC) $(CFLAGS) $(LDFLAGS) $< $(LIB) -lcmocka $(LDLIBS) -o $@
$(FUZZERS): %: %.o $(FUZZKIT) $(LIB)
	$(call say,LD)OMPI_CC=$(CC) $(MPICC) $(CFLAGS) $(LDFLAGS) $< $(FUZZKIT) $(LIB) $(LDLIBS) -o $@

# ---- packages ----------------------------------------------------------------------------------------
# $(call install_packages,LIST): nothing to do if dpkg knows them all. It runs apt-get update first.
define install_packages
@missing=; for p in $(1); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
if [ -z "$$missing" ]; then echo "packages: all present"; exit 0; fi; \
echo "packages: installing$$missing"; \
if [ "$$(id -u)" = 0 ]; then sudo=; \
elif command -v sudo >/dev/null; then sudo=sudo; \
else echo "packages:$$missing are missing; install them as root, or install sudo" >&2; exit 1; fi; \
export DEBIAN_FRONTEND=noninteractive; \
$$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends $$missing
endef
deps: ## install the packages for build and tests (Debian 12)
	$(call install_packages,$(PACKAGES) $(TEST_PACKAGES))
deps-demo: ## install the pictures and the tokenizer trainer for the demo
	$(call install_packages,$(PACKAGES) $(DEMO_PACKAGES))
deps-lint: ## install clang-format and clang-tidy
	$(call install_packages,$(LINT_PACKAGES))
deps-fuzz: ## install clang with libFuzzer
	$(call install_packages,$(FUZZ_PACKAGES))

# ---- checks -------------------------------------------------------------------------------------------
# The makes below start anew because the flags are read from packages that deps may just have
# installed. What does not build is a failed test: the count comes in any case.
check: deps ## packages, build, all tests, JOBS=2 programs at a time; SANITIZE=1: with ASan and UBSan
	@$(MAKE) --no-print-directory -k -j2 $(SANE) tests || echo "check: the build had errors"
	@SANITIZE=$(SANITIZE) tests/run.sh --build $(BUILD) --jobs $(JOBS)
check-kernels: deps ## the whole suite under each kernel set of OpenBLAS that this processor has
	@$(MAKE) --no-print-directory -k -j2 $(SANE) tests || echo "check: the build had errors"
	@found=0; for k in Haswell Zen SkylakeX Cooperlake SapphireRapids; do \
	  OPENBLAS_CORETYPE=$$k $(BUILD)/strata version | grep -q ", $$k kernels" || continue; \
	  OPENBLAS_CORETYPE=$$k STRATA_KERNELS=one tests/run.sh --build $(BUILD) --jobs $(JOBS) || found=1; done; exit $$found
check-long: deps ## the same with the long variants of the tests
	@$(MAKE) --no-print-directory -k -j2 $(SANE) tests || echo "check: the build had errors"
	@STRATA_LONG=1 SANITIZE=$(SANITIZE) tests/run.sh --build $(BUILD) --jobs $(JOBS)
# libFuzzer keeps the inputs it found in build/fuzz/corpus, so that the next run goes on from them.
fuzz: deps deps-fuzz ## invent inputs for every parser (FUZZ_SECONDS=30 each; FUZZ_JOBS=1 FUZZ_ONLY=name)
	@$(MAKE) --no-print-directory -j2 FUZZ=1 fuzzers
	@tests/fuzz/run.sh --seconds $(FUZZ_SECONDS) --jobs $(FUZZ_JOBS) $(FUZZ_ONLY)
# Libraries' headers are not ours to lint; the flag gives clang 14 the type _Float16.
lint: ## style and structure: tests/lint, clang-format 14 and clang-tidy 14
	@tests/run.sh --build $(BUILD) --require-clang tests/lint/*.sh; found=$$?; \
	if ! command -v clang-tidy-14 >/dev/null; then \
	  echo "clang-tidy-14 is not installed: run make deps-lint" >&2; exit 1; fi; \
	flags=$$(echo "$(CPPFLAGS) $$(pkg-config --cflags hdf5-openmpi jansson libpng libjpeg openblas ompi-c)" | \
	  sed 's|-I *//*|-isystem /|g'); \
	printf '%s\n' $(wildcard src/*/*.c src/backend/*/*.c) | \
	  xargs -P 2 -n 4 sh -c 'clang-tidy-14 --quiet "$$@" -- -std=c11 -mavx512fp16 -DSTRATA_REAL=32 '"$$flags" sh 2>/dev/null || found=1; \
	exit $$found
format: ## rewrite all C files with clang-format 14
	clang-format-14 -i $$(git ls-files 'include/*.h' 'src/*.[ch]' 'src/*.cc' 'tests/*.[ch]')
doc: $(BUILD)/strata ## write doc/job-file.md from the table of keys
	$(BUILD)/strata keys --markdown > doc/job-file.md.tmp
	mv doc/job-file.md.tmp doc/job-file.md

# ---- runs ---------------------------------------------------------------------------------------------
LAUNCH := OPENBLAS_NUM_THREADS=1 OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1 \
          OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_plm_rsh_agent=/bin/false \
          mpirun -n $(RANKS)
demo: deps-demo ## train a small LLaVA on 785 captioned pictures (minutes; RANKS=2)
	@$(MAKE) --no-print-directory -j2 all
	@input/make_demo_data.sh runs/demo
	$(LAUNCH) $(BUILD)/strata train input/llava_demo.ini
	@$(BUILD)/strata plot runs/demo --svg runs/demo/loss.svg
	@input/show_demo.sh runs/demo input/llava_demo.ini env $(LAUNCH) $(BUILD)/strata
	@echo; echo "the curve as a picture: runs/demo/loss.svg; the answers: runs/demo/answers.jsonl"
bench: $(BENCHES) $(BUILD)/strata ## speed and memory of a tiny, a small and a medium LLaVA
	@if [ -x tests/bench/run.sh ]; then tests/bench/run.sh $(BUILD); \
	elif [ -n "$(BENCHES)" ]; then for b in $(BENCHES); do echo "== $$b"; $$b || exit 1; done; \
	else echo "there is no benchmark in tests/bench yet" >&2; exit 1; fi
install: $(BUILD)/strata ## copy the program to $(PREFIX)/bin
	install -D -m 755 $(BUILD)/strata $(DESTDIR)$(PREFIX)/bin/strata
clean: ## remove everything built
	rm -rf build
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16
	@echo "variables       SANITIZE=1 FUZZ_SECONDS=30 V=1 OPT=-O3 ARCH=native BUILD=build RANKS=2 JOBS=2 PREFIX=/usr/local"

-include $(OBJ:.o=.d) $(FAULTOBJ:.o=.d) $(MAIN:.o=.d) $(TESTS:=.d) $(BENCHES:=.d) $(FUZZERS:=.d) $(FUZZKIT:.o=.d)
