//! Speculative decoding: tokens guessed cheaply, checked several at once (arXiv 2211.17192, 2302.01318).
//!
//! A step of a sequence runs its last token and k guesses as k + 1 rows of one forward pass. Row i gives the logits after
//! guess i. From each row in turn the token is drawn exactly as it would be without guesses, with the random number of
//! its position, its penalties and its mask; a guess counts as long as it *is* the drawn token. So the answer is the one
//! without speculation, token by token, whatever is guessed and however many: greedy or sampled, and there is nothing
//! that a length chosen by the clock could change.
//!
//! For a guess x that was not drawn itself (a lookup's, or the draft's most probable token) this is the rejection sampling
//! of arXiv 2211.17192: x is taken with its probability p(x), and what is drawn in its place has the distribution of p
//! without x. A draft model under a temperature draws its guesses with the random numbers of their positions, tokens
//! ranked by probability on both sides: the two draws agree where the distributions do. Accepting by min(1, p/q) would
//! take a few guesses more, but its answers depend on where guesses were made, and a seed would no longer give one text.
//!
//! [`PromptLookup`] guesses what followed the same few tokens before; [`DraftModel`] lets a small model go ahead. Both measure
//! what guesses cost and how often they are right, for each request, and guess as far as that pays, or not at all. Left out:
//! trees of guesses, guesses of several requests in one pass of the draft model.

mod draft;
mod length;
mod lookup;

pub use draft::DraftModel;
pub use length::Speculation;
pub use lookup::PromptLookup;

/// The most guesses of a request in one step.
const MOST: usize = 8;
