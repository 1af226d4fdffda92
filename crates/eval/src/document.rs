//! Documents, and the windows that a model with a limited context reads them through.

use russet_model::{Decoder, KvCache, KvFormat};
use russet_tensor::{Ctx, Segments, Tensor, ops};

use crate::{Error, Result};

/// A text to be predicted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// Its tokens, all of which are scored: without the beginning-of-text token, and with an end-of-text token only
    /// where that is to be scored too.
    pub tokens: Vec<u32>,
    /// Bytes of the text in UTF-8.
    pub bytes: u64,
}

/// How documents are read.
///
/// Before each document stands `bos`. The first window is its first `window` inputs, all of whose predictions count;
/// each further window begins `stride` inputs later, and only the predictions that no earlier window made count. So
/// every token is counted once, with all that lies before it in the document as context or with more than
/// `window - stride` tokens of it. A smaller stride costs more and comes closer to an unlimited context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The token before each document, itself not scored.
    pub bos: u32,
    /// The most tokens that the model sees at once, at most its context.
    pub window: usize,
    /// From one window to the next, 1 to `window`.
    pub stride: usize,
    /// The most tokens of one forward pass, at least `window`: short documents share one.
    pub batch_tokens: usize,
    /// What keys and values are kept in between a token and those that see it, of the model that is scored. In f32 they are as
    /// they are computed.
    pub format: KvFormat,
}

impl Settings {
    /// Windows that overlap by half, 2,048 tokens a pass (or one window, where it is larger), keys and values in f32.
    pub fn new(bos: u32, window: usize) -> Settings {
        Settings {
            bos,
            window,
            stride: window.div_ceil(2),
            batch_tokens: window.max(2048),
            format: KvFormat::F32,
        }
    }

    fn check(&self, decoder: &Decoder) -> Result<()> {
        let context = decoder.config().context;
        let wrong = |setting, value, wanted| {
            Err(Error::Setting {
                setting,
                value,
                wanted,
            })
        };
        if !(1..=context).contains(&self.window) {
            return wrong(
                "window",
                self.window,
                format!("from 1 to {context}, the context of the model"),
            );
        }
        if !(1..=self.window).contains(&self.stride) {
            return wrong(
                "stride",
                self.stride,
                format!("from 1 to {}, the window", self.window),
            );
        }
        if self.batch_tokens < self.window {
            return wrong(
                "batch_tokens",
                self.batch_tokens,
                format!("at least {}, the window", self.window),
            );
        }
        let (head, widest) = (decoder.config().head_dim, self.format.widest_head());
        if head > widest {
            let wanted = format!("at most {widest} where keys and values have 8 bits; take f32");
            return wrong("head_dim", head, wanted);
        }
        Ok(())
    }
}

/// Tokens and bytes of all documents.
pub(crate) struct Totals {
    pub tokens: u64,
    pub bytes: u64,
}

/// Whether `decoder` can score these documents under these settings, and how much there is.
pub(crate) fn check(
    decoder: &Decoder,
    documents: &[Document],
    settings: &Settings,
) -> Result<Totals> {
    settings.check(decoder)?;
    let vocab = decoder.config().vocab;
    let known = |token: u32, place: &dyn Fn() -> String| {
        if (token as usize) < vocab {
            Ok(())
        } else {
            Err(Error::UnknownToken {
                place: place(),
                token,
                vocab,
            })
        }
    };
    known(settings.bos, &|| "bos".into())?;
    let mut totals = Totals {
        tokens: 0,
        bytes: 0,
    };
    for (d, document) in documents.iter().enumerate() {
        for (i, &token) in document.tokens.iter().enumerate() {
            known(token, &|| {
                format!("token {i} of document {d} (both counted from 0)")
            })?;
        }
        totals.tokens += document.tokens.len() as u64;
        totals.bytes += document.bytes;
    }
    let Totals { tokens, bytes } = totals;
    if tokens == 0 || bytes == 0 {
        Err(Error::Empty { tokens, bytes })
    } else {
        Ok(totals)
    }
}

/// Windows that share a forward pass.
#[derive(Default)]
pub(crate) struct Batch {
    tokens: Vec<u32>,      // [N]
    lengths: Vec<usize>,   // of the windows
    rows: Vec<usize>,      // [M] that count
    pub targets: Vec<u32>, // [M] what follows each
}

impl Batch {
    fn push(&mut self, document: &Document, bos: u32, window: Window) {
        let Window { start, fresh, end } = window;
        let first = self.tokens.len();
        // Input i predicts token i: the inputs are the document moved on by one, behind `bos`.
        if start == 0 {
            self.tokens.push(bos);
        }
        self.tokens
            .extend_from_slice(&document.tokens[start.max(1) - 1..end - 1]);
        self.lengths.push(end - start);
        self.rows.extend(first + fresh - start..first + end - start);
        self.targets.extend_from_slice(&document.tokens[fresh..end]);
    }

    /// The hidden states that predict the targets, `[M, D]`, keys and values kept in `format`.
    pub fn hidden(&self, decoder: &Decoder, ctx: &mut Ctx, format: KvFormat) -> Tensor {
        let segments = Segments::packed(&self.lengths);
        // In f32 a pass through a cache has the bits of one without.
        let mut cache = (format != KvFormat::F32).then(|| {
            let (slots, tokens) = (self.lengths.len(), self.tokens.len());
            let mut cache = KvCache::sized(decoder.config(), format, slots, tokens);
            for (slot, &len) in self.lengths.iter().enumerate() {
                cache
                    .extend(slot, len)
                    .expect("it has room for all of them");
            }
            cache
        });
        let hidden = decoder.forward(ctx, &self.tokens, &segments, cache.as_mut());
        if self.rows.len() == self.tokens.len() {
            hidden
        } else {
            ops::rows(ctx, &hidden, &self.rows)
        }
    }
}

/// The windows of all documents in order, as many a pass as fit.
pub(crate) fn batches<'a>(
    documents: &'a [Document],
    settings: &'a Settings,
) -> impl Iterator<Item = Batch> + 'a {
    let mut all = documents
        .iter()
        .flat_map(|document| {
            windows(document.tokens.len(), settings).map(move |window| (document, window))
        })
        .peekable();
    std::iter::from_fn(move || {
        let mut batch = Batch::default();
        while let Some((document, window)) = all.next_if(|(_, window)| {
            batch.tokens.len() + window.end - window.start <= settings.batch_tokens
        }) {
            batch.push(document, settings.bos, window);
        }
        (!batch.tokens.is_empty()).then_some(batch)
    })
}

/// Inputs `start..end` of a document, of which the predictions from `fresh` on count.
#[derive(Clone, Copy, Debug)]
struct Window {
    start: usize,
    fresh: usize,
    end: usize,
}

fn windows(tokens: usize, settings: &Settings) -> impl Iterator<Item = Window> + use<> {
    let Settings { window, stride, .. } = *settings;
    let first = Window {
        start: 0,
        fresh: 0,
        end: window.min(tokens),
    };
    let next = move |last: &Window| {
        let start = last.start + stride;
        (last.end < tokens).then(|| Window {
            start,
            fresh: last.end,
            end: (start + window).min(tokens),
        })
    };
    std::iter::successors((tokens > 0).then_some(first), next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_counts_once_with_the_context_promised() {
        for tokens in 0..40 {
            for window in 1..12 {
                for stride in 1..=window {
                    let settings = Settings {
                        stride,
                        ..Settings::new(0, window)
                    };
                    let mut counted = 0;
                    for w in windows(tokens, &settings) {
                        assert_eq!(w.fresh, counted);
                        assert!(w.fresh < w.end && w.end - w.start <= window, "{w:?}");
                        let context = w.fresh - w.start;
                        assert!(
                            w.start == 0 || context >= window - stride,
                            "{w:?} of window {window}, stride {stride}"
                        );
                        counted = w.end;
                    }
                    assert_eq!(counted, tokens, "window {window}, stride {stride}");
                }
            }
        }
    }

    #[test]
    fn batches_hold_what_they_should() {
        let document = |tokens: &[u32]| Document {
            tokens: tokens.to_vec(),
            bytes: 1,
        };
        let documents = [
            document(&[1, 2, 3, 4, 5, 6, 7]),
            document(&[]),
            document(&[8]),
            document(&[9, 10]),
        ];
        let settings = Settings {
            bos: 0,
            window: 4,
            stride: 2,
            batch_tokens: 8,
            ..Settings::new(0, 4)
        };
        let all: Vec<Batch> = batches(&documents, &settings).collect();
        let tokens: Vec<_> = all.iter().map(|batch| &batch.tokens[..]).collect();
        assert_eq!(tokens, [&[0, 1, 2, 3, 2, 3, 4, 5][..], &[4, 5, 6, 0, 0, 9]]);
        let lengths: Vec<_> = all.iter().map(|batch| &batch.lengths[..]).collect();
        assert_eq!(lengths, [&[4, 4][..], &[3, 1, 2]]);
        let rows: Vec<_> = all.iter().map(|batch| &batch.rows[..]).collect();
        assert_eq!(rows, [&[0, 1, 2, 3, 6, 7][..], &[2, 3, 4, 5]]);
        let targets: Vec<_> = all.iter().map(|batch| &batch.targets[..]).collect();
        assert_eq!(targets, [&[1, 2, 3, 4, 5, 6][..], &[7, 8, 9, 10]]);
    }
}
