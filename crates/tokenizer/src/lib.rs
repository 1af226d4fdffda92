//! Text to tokens and back: the first arrow of the flow.
//!
//! In the order one uses them:
//! - [`train_stage`] trains a byte-pair encoding of any size from text files ([`train`]); [`Tokenizer::open`] reads
//!   it, any Hugging Face tokenizer whose decoder is understood, a llama2.c file ([`Tokenizer::from_llama2c`]) or the entries of a GGUF file ([`GgufVocabulary`]);
//! - [`encode_stage`] turns text files ([`read_texts`]) into token shards, which [`TokenShard`] maps for training;
//! - [`Tokenizer::encode`], [`Tokenizer::decode`] and the streaming [`Detokenizer`] serve generation;
//! - [`StopFilter`] ends a stream of text where a stop string appears, and never lets a part of one through;
//! - [`Tokenizer::encode_chat`] renders a conversation by its [`ChatTemplate`] so that no message can forge a
//!   control token, and [`Tokenizer::encode_turns`] says which tokens the assistant said.
//!
//! This crate knows nothing of models, manifests, recipes or HTTP. Every file and template is treated as a
//! stranger's: bounded, checked, and refused with a sentence. Nothing here panics on input.

mod chat;
mod clock;
mod conversation;
mod detokenizer;
mod direct;
mod error;
mod gguf;
mod llama2c;
mod open;
mod shard;
mod stage;
mod stop;
mod texts;
mod tokenizer;
mod train;
mod vocabulary;

pub use chat::{CHATML, CHATML_TOOLS, ChatTemplate, Message};
pub use conversation::{Conversation, Span, Turns};
pub use detokenizer::Detokenizer;
pub use error::{Result, TokenizerError};
pub use gguf::GgufVocabulary;
pub use shard::{ShardSummary, ShardWriter, TokenShard};
pub use stage::{EncodeReport, TrainReport, encode_stage, train_stage};
pub use stop::StopFilter;
pub use texts::{Limits, Lines, Texts, read_lines, read_texts, read_texts_within};
pub use tokenizer::{END_OF_TEXT, IM_END, IM_START, PAD, SpecialIds, SpecialTokens, Tokenizer};
pub use train::{Progress, TrainConfig, WORD_PATTERN, train, train_with};
