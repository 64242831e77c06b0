// The one door to libsentencepiece, whose interface is C++ only: thin extern "C" functions, no
// strata logic. Exceptions do not leave this file.
#include <sentencepiece_processor.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <string>

extern "C" {
#include "sentencepiece_impl.h"
}

struct sp_model {
    sentencepiece::SentencePieceProcessor processor;
};

static void set_message(char *message, size_t size, const char *text) {
    std::snprintf(message, size, "%s", text);
}

extern "C" int sp_create(const char *data, size_t bytes, struct sp_model **out, char *message,
                         size_t message_bytes) {
    try {
        auto model = std::make_unique<sp_model>();
        const absl::string_view file(data, bytes);
        const auto status = model->processor.LoadFromSerializedProto(file);
        if (!status.ok()) {
            set_message(message, message_bytes, status.error_message());
            return -1;
        }
        *out = model.release();
        return 0;
    } catch (const std::exception &e) {
        set_message(message, message_bytes, e.what());
        return -1;
    }
}

extern "C" void sp_destroy(struct sp_model *model) {
    delete model;
}

extern "C" int sp_pieces(const struct sp_model *model) {
    return model->processor.GetPieceSize();
}
extern "C" int sp_bos(const struct sp_model *model) {
    return model->processor.bos_id();
}
extern "C" int sp_eos(const struct sp_model *model) {
    return model->processor.eos_id();
}
extern "C" int sp_unk(const struct sp_model *model) {
    return model->processor.unk_id();
}

extern "C" const char *sp_piece(const struct sp_model *model, int id, size_t *bytes,
                                bool *cut_out) {
    const auto &p = model->processor;
    const std::string &text = p.IdToPiece(id);
    *cut_out = p.IsControl(id) || p.IsUnknown(id);
    *bytes = text.size();
    return text.data();
}

extern "C" int sp_encode(const struct sp_model *model, const char *text, size_t bytes, sp_emit emit,
                         void *arg) {
    try {
        const auto result = model->processor.EncodeAsImmutableProto(absl::string_view(text, bytes));
        for (const auto &piece : result.pieces())
            emit(arg, static_cast<int>(piece.id()), piece.begin());
        return 0;
    } catch (const std::exception &) {
        return -1;
    }
}

extern "C" int sp_decode(const struct sp_model *model, const int *ids, size_t n, sp_text emit,
                         void *arg) {
    try {
        std::string text;
        const auto status = model->processor.Decode(std::vector<int>(ids, ids + n), &text);
        if (!status.ok()) return -1;
        emit(arg, text.data(), text.size());
        return 0;
    } catch (const std::exception &) {
        return -1;
    }
}
