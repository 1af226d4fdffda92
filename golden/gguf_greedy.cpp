// What llama.cpp says of a GGUF file, for golden/gguf.py: the ids of a text, and the likeliest continuation of it.
//
//     gguf_greedy MODEL.gguf COUNT TEXT...
//
// Prints two lines a text: its ids with what the tokenizer puts around it, and the ids of COUNT likeliest tokens after it, ended by any that
// ends a text. Keys and values stay in f32, so that only the order of sums differs from Russet's.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "llama.h"

static void quiet(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

static void print(const std::vector<llama_token> & ids) {
    for (size_t i = 0; i < ids.size(); ++i) {
        printf(i == 0 ? "%d" : " %d", ids[i]);
    }
    printf("\n");
}

int main(int count, char ** arguments) {
    if (count < 4) {
        fprintf(stderr, "usage: gguf_greedy MODEL.gguf COUNT TEXT...\n");
        return 2;
    }
    llama_log_set(quiet, nullptr);
    llama_model * model = llama_model_load_from_file(arguments[1], llama_model_default_params());
    if (model == nullptr) {
        return 1;
    }
    const llama_vocab * vocab = llama_model_get_vocab(model);
    const int wanted = atoi(arguments[2]);
    for (int at = 3; at < count; ++at) {
        const char * text = arguments[at];
        std::vector<llama_token> ids(strlen(text) + 8);
        const int found = llama_tokenize(vocab, text, strlen(text), ids.data(), ids.size(), true, false);
        if (found < 0) {
            fprintf(stderr, "the text has more tokens than bytes\n");
            return 1;
        }
        ids.resize(found);
        print(ids);
        llama_context_params params = llama_context_default_params();
        params.n_ctx = ids.size() + wanted + 1;
        params.n_batch = params.n_ctx;
        params.type_k = GGML_TYPE_F32;
        params.type_v = GGML_TYPE_F32;
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        params.n_threads = 1;
        params.n_threads_batch = 1;
        llama_context * context = llama_init_from_model(model, params);
        if (context == nullptr) {
            return 1;
        }
        std::vector<llama_token> made;
        llama_batch batch = llama_batch_get_one(ids.data(), ids.size());
        llama_token next = 0;
        while (wanted > 0 && !ids.empty()) {
            if (llama_decode(context, batch) != 0) {
                return 1;
            }
            const float * logits = llama_get_logits_ith(context, -1);
            next = 0;
            for (llama_token id = 1; id < llama_vocab_n_tokens(vocab); ++id) {
                if (logits[id] > logits[next]) {
                    next = id;
                }
            }
            made.push_back(next);
            if ((int) made.size() == wanted || llama_vocab_is_eog(vocab, next)) {
                break;
            }
            batch = llama_batch_get_one(&next, 1);
        }
        print(made);
        llama_free(context);
    }
    llama_model_free(model);
    return 0;
}
