//! Palettizing with one block of the checkpoint in memory at a time, and what of it survives the process.
//!
//! The same numbers as [`crate::palettize`]'s way for a whole decoder, to the bit: hidden states go through the checkpoint block by block, gradients
//! come back block by block, and what both ways do with a block is the same code.
//! ```text
//! reading     block l:  hidden l → hidden l + 1, keys that others use    last: the loss, and its gradient at hidden L
//! weighing    L − 1 … 0:  gradient l + 1 → gradient l, that of keys it uses, moments → a fit of each projection for each width, what fewer bits cost it
//!             which bits each gets: the knapsack
//! refining    block l:  hidden l → covariances → the fits that were chosen, refined
//! writing     the package, tensor by tensor
//! ```
//! What each step makes is a file of the state folder, written beside and renamed in, so that a process that ends at any point is gone on from at
//! the first file that is missing; hidden states of all blocks lie there, [tokens, D] in f32 each. A state of other settings or inputs is thrown away.
//!
//! In memory are one block's weights, their Fisher information or covariances, the fits of a block, what refines one projection (16 bytes a weight of it), a
//! batch's activations, and at the end of
//! reading and of writing a table. Left out: measured sensitivities, which run the whole decoder for every projection.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use russet_kernels::palette::Bits;
use russet_kernels::{Mmap, Pool};
use russet_model::checkpoint::Blocks;
use russet_model::package;
use russet_model::{Config, ModelError, projections};
use russet_tensor::{DType, Gradients, Made, Tensor};

use crate::CompressError;
use crate::budget::Budget;
use crate::calibration::{Batch, Calibration};
use crate::importance::Weights;
use crate::kept::{
    Folder, Rows, State, Tensors, numbered, take_error, take_fit, take_numbers, take_packed,
};
use crate::model::{Model, check_tables, finite};
use crate::rotate::Source;
use crate::settings::{LayerReport, Report, Settings};
use crate::table::{self, Table};
use crate::tap::{Listen, Moments};
use crate::watch::Watch;
use crate::{refine, sensitivity};

/// Palettizes a checkpoint block by block into `draft`; the report still lacks `loss_after` and `seconds`.
pub(crate) fn run(
    pool: &Arc<Pool>,
    settings: &Settings,
    blocks: &Blocks,
    calibration: &Calibration,
    draft: &Path,
    state: &State,
    watch: &mut Watch,
) -> Result<Report, CompressError> {
    let folder = Folder::open(state)?;
    let source = Source::new(pool, settings, blocks)?;
    let work = Work {
        pool,
        settings,
        source: &source,
        calibration,
        folder: &folder,
        fitted: settings.fitted(),
    };
    let loss_before = work.read(watch)?;
    work.weigh(watch)?;
    let rises = work.rises()?;
    let config = source.config();
    let (bits, curve) = Budget::new(settings, config)?.choose(&rises);
    let (layers, bytes) = work.refine(&bits, &rises, watch)?;
    let written = work.write(&bits, draft, watch)?;
    let weights = config.projection_parameters() as u64;
    Ok(Report {
        bpw: 8.0 * bytes as f64 / weights as f64,
        bits_per_parameter: 8.0 * written as f64 / config.parameters() as f64,
        bytes: written as u64,
        rotation: settings.rotation,
        seconds: 0.0,
        weights,
        calibration_tokens: calibration.tokens() as u64,
        loss_before,
        loss_after: f64::NAN,
        layers,
        curve,
    })
}

/// Files of keys and values that later blocks use, and of gradients at them, `[tokens, 2G·K]`.
const KEYS: &str = "keys";
const D_KEYS: &str = "keys-gradient";

struct Work<'a> {
    pool: &'a Arc<Pool>,
    settings: &'a Settings,
    source: &'a Source<'a>,
    calibration: &'a Calibration,
    folder: &'a Folder,
    fitted: Vec<Bits>, // the bits of every fit, in the order of files
}

impl Work<'_> {
    fn config(&self) -> &Config {
        self.source.config()
    }

    /// Takes the text through all blocks, and the loss's gradient to the last; the loss in nats a token.
    fn read(&self, watch: &mut Watch) -> Result<f64, CompressError> {
        let layers = self.config().layers;
        let total = self.calibration.tokens() * (layers + 1);
        watch.part("reading calibration text", total, "tokens", |watch| {
            let mut ctx = self.calibration.ctx(self.pool);
            if !self.folder.has("hidden", 0) {
                let ends = self.source.ends()?;
                check_tables(&ends)?;
                self.each("hidden", 0, |batch| Ok(ends.first(&mut ctx, &batch.tokens)))?;
            }
            for layer in 0..layers {
                let done = self.calibration.tokens();
                if self.folder.has("hidden", layer + 1) {
                    watch.resumed(done);
                    continue;
                }
                let decoder = self.source.block(layer)?;
                let mut hidden = self.rows("hidden", layer)?;
                let mut keys = self.keys(layer)?;
                let lends = self.config().attention_of(layer).lends;
                let lent = lends.then_some((KEYS, layer));
                self.each_beside(("hidden", layer + 1), lent, |batch| {
                    let x = hidden.next(batch.tokens.len());
                    let kv = keys.as_mut().map(|keys| keys.next(batch.tokens.len()));
                    watch.step(batch.tokens.len(), &[])?;
                    Ok(decoder.block(&mut ctx, 0, &x, kv.as_ref(), &batch.segments()))
                })?;
            }
            if let Some(loss) = self.folder.numbers("loss", 1)? {
                watch.resumed(self.calibration.tokens());
                return Ok(loss[0]);
            }
            let ends = self.source.ends()?;
            let mut gradients = Gradients::default();
            let (mut sum, mut tokens) = (0.0, 0);
            let mut hidden = self.rows("hidden", layers)?;
            self.each("gradient", layers, |batch| {
                let x = hidden.next(batch.tokens.len());
                ctx.start_tape([x.id()]);
                let normed = ends.last(&mut ctx, &x);
                let weights = vec![1.0; batch.tokens.len()];
                let loss = ends.loss(&mut ctx, &normed, &batch.targets, &weights);
                ctx.backward(&loss.loss, 1.0, &mut gradients);
                sum += loss
                    .per_token
                    .iter()
                    .map(|&loss| f64::from(loss))
                    .sum::<f64>();
                tokens += batch.tokens.len();
                watch.step(batch.tokens.len(), &[("loss", sum / tokens as f64)])?;
                let gradient = gradients.take(&x).expect("the loss depends on it");
                gradients.clear();
                Ok(gradient)
            })?;
            let loss = sum / tokens as f64;
            if !loss.is_finite() {
                // A weight that is no number is named where there is one.
                for layer in 0..layers {
                    Model::new(self.source.block(layer)?)?;
                }
            }
            let loss = finite(loss)?;
            self.folder.put_numbers("loss", &[loss])?;
            Ok(loss)
        })
    }

    /// Brings the gradient back through all blocks, fits every projection with each width, and finds out what fewer bits cost it.
    fn weigh(&self, watch: &mut Watch) -> Result<(), CompressError> {
        let total = self.config().projection_parameters();
        watch.part(
            "predicting what fewer bits cost",
            total,
            "weights",
            |watch| {
                for layer in (0..self.config().layers).rev() {
                    let name = numbered("fits", layer);
                    if self.folder.has_tensors(&name) {
                        watch.resumed(total / self.config().layers);
                    } else {
                        let mut model = Model::new(self.source.block(layer)?)?;
                        self.gather(&mut model, layer, watch)?;
                        self.fit(&model, &name, watch)?;
                    }
                    // What this block needed and no other does.
                    self.folder.remove("gradient", layer + 1)?;
                    if let Some(after) = self.next_user(layer) {
                        self.folder.remove(D_KEYS, after)?;
                    }
                }
                Ok(())
            },
        )
    }

    /// Moments of a block's products, and the gradient at what it sees: hidden states, and keys of another block with what later blocks
    /// have added to it.
    fn gather(
        &self,
        model: &mut Model,
        layer: usize,
        watch: &mut Watch,
    ) -> Result<(), CompressError> {
        for product in &model.products {
            product.tap.listen(Listen::Moments(Moments::default()));
        }
        let mut ctx = self.calibration.ctx(self.pool);
        let mut gradients = Gradients::default();
        let mut hidden = self.rows("hidden", layer)?;
        let mut above = self.rows("gradient", layer + 1)?;
        let mut keys = self.keys(layer)?;
        let mut keys_above = match self.next_user(layer) {
            Some(after) => Some(self.rows_of(D_KEYS, after, self.kv_width())?),
            None => None,
        };
        let uses = keys.is_some().then_some((D_KEYS, layer));
        self.each_beside(("gradient", layer), uses, |batch| {
            let rows = batch.tokens.len();
            let (x, d_y) = (hidden.next(rows), above.next(rows));
            let kv = keys.as_mut().map(|keys| keys.next(rows));
            let d_kv_above = keys_above.as_mut().map(|above| above.next(rows));
            ctx.start_tape([&x].into_iter().chain(&kv).map(Tensor::id));
            let segments = batch.segments();
            let block = &model.decoder;
            let (y, lent) = block.block(&mut ctx, 0, &x, kv.as_ref(), &segments);
            gradients.put(&y, d_y);
            // What later blocks give to keys: those lent here, or those used here too.
            if let (Some(of), Some(d_kv)) = (lent.as_ref().or(kv.as_ref()), d_kv_above) {
                gradients.put(of, d_kv);
            }
            // The tape wants a loss to begin at; this one nothing depends on, and the walk begins with the gradient put above.
            let loss = Tensor::new(&[1], vec![0.0]);
            ctx.backward(&loss, 0.0, &mut gradients);
            watch.step(0, &[])?;
            let gradient = gradients.take(&x).expect("a block depends on what it sees");
            let d_kv = kv.and_then(|kv| gradients.take(&kv));
            gradients.clear();
            Ok((gradient, d_kv))
        })?;
        for product in &mut model.products {
            let Listen::Moments(moments) = product.tap.listen(Listen::Nothing) else {
                unreachable!("moments were asked for")
            };
            product.moments = moments;
        }
        model.tokens = self.calibration.tokens();
        model.check_moments()
    }

    /// Writes the fits of each projection of a block, what fewer bits cost, and the tokens' weights at each product.
    fn fit(&self, model: &Model, name: &str, watch: &mut Watch) -> Result<(), CompressError> {
        let weights = Weights::new(model, self.settings.weighting);
        let mut tensors = Tensors::default();
        for projection in &model.projections {
            let (fits, rises) =
                sensitivity::each(self.pool, model, &weights, projection, &self.fitted);
            tensors.numbers(&format!("{}.rises", projection.name), &rises);
            for (fit, bits) in fits.iter().zip(&self.fitted) {
                tensors.fit(&format!("{}.{}", projection.name, bits.name()), fit)?;
            }
            watch.step(projection.weights() as usize, &[("nats", rises[0])])?;
        }
        for (number, product) in model.products.iter().enumerate() {
            let all = &product.moments.token_weights;
            let bytes = all.iter().flat_map(|w| w.to_le_bytes()).collect();
            tensors.add(
                format!("tokens.{number}"),
                DType::F32,
                vec![all.len()],
                bytes,
            );
        }
        self.folder.put_tensors(name, &tensors)
    }

    /// What each width costs each projection, in the order of the forward pass.
    fn rises(&self) -> Result<Vec<Vec<f64>>, CompressError> {
        let mut rises = Vec::new();
        for layer in 0..self.config().layers {
            let mut fits = self.folder.tensors(&numbered("fits", layer))?;
            for (name, ..) in projections(self.config(), layer) {
                let (name, count) = (format!("{name}.rises"), self.fitted.len());
                rises.push(take_numbers(&mut fits, &name, count)?);
            }
        }
        Ok(rises)
    }

    /// Refines the chosen fit of each projection. What was made of each, and the bytes of all.
    fn refine(
        &self,
        bits: &[Bits],
        rises: &[Vec<f64>],
        watch: &mut Watch,
    ) -> Result<(Vec<LayerReport>, usize), CompressError> {
        let total = self.config().projection_parameters();
        let (mut layers, mut bytes) = (Vec::new(), 0);
        let what = match self.settings.error_feedback {
            true => "feeding errors back",
            false => "palettizing",
        };
        watch.part(what, total, "weights", |watch| {
            let mut end = 0;
            for layer in 0..self.config().layers {
                let named = projections(self.config(), layer);
                let range = end..end + named.len();
                end = range.end;
                let name = numbered("block", layer);
                if self.folder.has_tensors(&name) {
                    watch.resumed(total / self.config().layers);
                } else {
                    self.refine_block(layer, &bits[range.clone()], watch)?;
                }
                let mut made = self.folder.tensors(&name)?;
                for ((name, rows, cols), number) in named.into_iter().zip(range) {
                    let [error, energy] = take_error(&mut made, &name)?;
                    let bits = bits[number];
                    bytes += crate::matrix::stored_bytes(bits, rows, cols)
                        .expect("the sizes were checked");
                    let error = if energy > 0.0 { error / energy } else { 0.0 };
                    let rises = &rises[number];
                    layers.push(LayerReport::new(name, bits, error, &self.fitted, rises));
                }
            }
            Ok(())
        })?;
        Ok((layers, bytes))
    }

    fn refine_block(
        &self,
        layer: usize,
        bits: &[Bits],
        watch: &mut Watch,
    ) -> Result<(), CompressError> {
        let mut model = Model::new(self.source.block(layer)?)?;
        let mut stored = self.folder.tensors(&numbered("fits", layer))?;
        for (number, product) in model.products.iter_mut().enumerate() {
            let shape = [self.calibration.tokens()];
            product.moments.token_weights = stored
                .take_f32(&format!("tokens.{number}"), &shape)?
                .to_f32();
        }
        let mut fits = Vec::new();
        for (projection, &bits) in model.projections.iter().zip(bits) {
            let name = format!("{}.{}", projection.name, bits.name());
            fits.push(take_fit(
                &mut stored,
                &name,
                bits,
                projection.rows.len(),
                projection.cols,
            )?);
        }
        if self.settings.error_feedback {
            let products: Vec<usize> = (0..model.products.len()).collect();
            refine::listen(self.settings, &model, &products);
            let mut ctx = self.calibration.ctx(self.pool);
            let mut hidden = self.rows("hidden", layer)?;
            let mut keys = self.keys(layer)?;
            for batch in &self.calibration.batches {
                let x = hidden.next(batch.tokens.len());
                let kv = keys.as_mut().map(|keys| keys.next(batch.tokens.len()));
                let segments = batch.segments();
                model.decoder.block(&mut ctx, 0, &x, kv.as_ref(), &segments);
                watch.step(0, &[])?;
            }
            refine::refine(self.pool, &model, &products, &mut fits, watch)?;
        } else {
            watch.step(model.weights() as usize, &[])?;
        }
        let mut tensors = Tensors::default();
        for (projection, fit) in model.projections.iter().zip(&fits) {
            tensors.fit(&projection.name, fit)?;
        }
        self.folder.put_tensors(&numbered("block", layer), &tensors)
    }

    /// Writes the package; the bytes of its tensors.
    fn write(
        &self,
        bits: &[Bits],
        draft: &Path,
        watch: &mut Watch,
    ) -> Result<usize, CompressError> {
        let config = self.config();
        let mut modules = BTreeMap::new();
        let mut made = BTreeMap::new();
        let mut all_bits = bits.iter();
        for layer in 0..config.layers {
            let mut block = self.folder.tensors(&numbered("block", layer))?;
            for (name, rows, cols) in projections(config, layer) {
                let &bits = all_bits.next().expect("bits for every projection");
                for (part, tensor) in take_packed(&mut block, &name, bits, rows, cols)? {
                    made.insert(format!("{name}.{part}"), tensor);
                }
                modules.insert(name, (bits, rows, cols));
            }
        }
        if let Some(bits) = self.settings.table_bits.palette() {
            let head = (!config.tied).then_some("lm_head");
            for table in ["model.embed_tokens"].into_iter().chain(head) {
                modules.insert(table.to_owned(), (bits, config.vocab, config.width));
            }
        }
        watch.part(
            "writing the package",
            config.parameters(),
            "parameters",
            |watch| {
                let mut tables: BTreeMap<String, Table> = BTreeMap::new();
                let mut stop = None;
                let written = package::write_each(config, &modules, draft, |name| {
                    if let Some(tensor) = made.get(name) {
                        return Ok(Cow::Owned(tensor.bytes().to_vec()));
                    }
                    let Some((table, part)) = name
                        .rsplit_once('.')
                        .filter(|(table, _)| package::is_table(table))
                        .filter(|(_, part)| *part != "weight")
                    else {
                        let norm = self.source.norm(name)?;
                        return Ok(Cow::Owned(norm.bytes().to_vec()));
                    };
                    if !tables.contains_key(table) {
                        match self.table(table, watch) {
                            Ok(made) => drop(tables.insert(table.to_owned(), made)),
                            Err(wish) => {
                                stop = Some(wish);
                                return Err(ModelError::file(draft, "stopped"));
                            }
                        }
                    }
                    Ok(Cow::Owned(tables[table].bytes(part)))
                });
                match stop {
                    Some(wish) => Err(wish),
                    None => Ok(written?),
                }
            },
        )
    }

    fn table(&self, name: &str, watch: &mut Watch) -> Result<Table, CompressError> {
        let weight = self.source.table(name)?;
        let shape = weight.dims2();
        let (bits, weight) = (self.settings.table_bits, weight.data());
        table::make(self.pool, bits, name, shape, weight, &mut |more| {
            watch.step(more, &[])
        })
    }

    /// Writes what `make` gives for each batch, `[N, D]` each, as one file.
    fn each(
        &self,
        name: &str,
        number: usize,
        mut make: impl FnMut(&Batch) -> Result<Tensor, CompressError>,
    ) -> Result<(), CompressError> {
        self.folder.put(&numbered(name, number), &mut |out| {
            for batch in &self.calibration.batches {
                let made = make(batch)?;
                out(made.bytes())?;
            }
            Ok(())
        })
    }

    /// The same, and a second file, which is in its place before the first, of what `make` gives beside.
    fn each_beside(
        &self,
        (name, number): (&str, usize),
        beside: Option<(&str, usize)>,
        mut make: impl FnMut(&Batch) -> Result<Made, CompressError>,
    ) -> Result<(), CompressError> {
        let Some((other, other_number)) = beside else {
            return self.each(name, number, |batch| Ok(make(batch)?.0));
        };
        self.folder.put(&numbered(name, number), &mut |out| {
            let other = numbered(other, other_number);
            self.folder.put(&other, &mut |out_beside| {
                for batch in &self.calibration.batches {
                    let (made, beside) = make(batch)?;
                    out(made.bytes())?;
                    out_beside(beside.expect("what was announced").bytes())?;
                }
                Ok(())
            })
        })
    }

    /// The next block that uses the keys that `layer` has or uses.
    fn next_user(&self, layer: usize) -> Option<usize> {
        let config = self.config();
        let keys_of = config.attention_of(layer).keys_of;
        let mut after = layer + 1..config.layers;
        after.find(|&after| {
            let attention = config.attention_of(after);
            attention.shares && attention.keys_of == keys_of
        })
    }

    /// The keys and values of another block that `layer` uses, `[tokens, 2G·K]`.
    fn keys(&self, layer: usize) -> Result<Option<Rows>, CompressError> {
        let attention = self.config().attention_of(layer);
        match attention.shares {
            true => self
                .rows_of(KEYS, attention.keys_of, self.kv_width())
                .map(Some),
            false => Ok(None),
        }
    }

    fn kv_width(&self) -> usize {
        2 * self.config().kv_heads * self.config().head_dim
    }

    /// The rows of a file of hidden states or their gradients, in order.
    fn rows(&self, name: &str, number: usize) -> Result<Rows, CompressError> {
        self.rows_of(name, number, self.config().width)
    }

    fn rows_of(&self, name: &str, number: usize, width: usize) -> Result<Rows, CompressError> {
        let path = self.folder.path().join(numbered(name, number));
        let bytes = self.calibration.tokens() * width * size_of::<f32>();
        let map = Mmap::open(&path).ok().filter(|map| map.len() == bytes);
        let map = map.ok_or_else(|| Folder::damaged(&path))?;
        Ok(Rows { map, width, at: 0 })
    }
}
