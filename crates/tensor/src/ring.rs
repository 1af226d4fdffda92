//! Tokens that are shared out along an axis of ranks, and which of them attend to which.
//!
//! The N flat tokens of a pass are cut in 2 S chunks, and rank s has the chunks s and 2 S − 1 − s:
//!
//! ```text
//! S = 3     0 1 2 2 1 0      whose each chunk is, in the order of the tokens
//! ```
//! A token attends to what comes before it, so ranks with one run each would have the more to do the later it is. So paired,
//! each of them sees two chunks of every other rank's in each round of the ring, whatever the rank ("zig-zag"). Documents may
//! begin and end anywhere. The rows of a document that a rank has are neighbours on it, and what they see of another rank's is
//! either one run of its rows, all of it, or nothing: no mask ever crosses ranks.
//!
//! Through a window rows see keys by their distance, and the two chunks of a rank are neighbours in its rows and not in the document.
//! Then each chunk meets each other one apart, with the gap between them known.

use std::ops::Range;
use std::sync::Arc;

use russet_kernels::attention::{NO_WINDOW, Part};

use crate::Segments;
use crate::collective::share;
use crate::mesh::Group;

/// The tokens that a rank of several has, in order.
pub fn chunks(tokens: usize, size: usize, rank: usize) -> [Range<usize>; 2] {
    [rank, 2 * size - 1 - rank].map(|chunk| share(tokens, 2 * size, chunk))
}

/// How many they are.
pub fn rows(tokens: usize, size: usize, rank: usize) -> usize {
    chunks(tokens, size, rank).iter().map(Range::len).sum()
}

/// What of something that each token has belongs to this rank of a group.
pub fn own<T: Copy>(group: &Group, of_tokens: &[T]) -> Vec<T> {
    let chunks = chunks(of_tokens.len(), group.size(), group.rank());
    chunks.map(|chunk| &of_tokens[chunk]).concat()
}

/// Who attends to whom in a pass of some documents.
pub struct Ring {
    group: Arc<Group>,
    rows: Vec<usize>, // of each rank
    whole: Views,
    chunked: Views,
}

/// What rows see.
pub(crate) struct Views {
    /// First rows and lengths of what this rank has of documents, each attending to itself.
    pub own: Vec<(usize, usize)>,
    /// For each round, the first among own rows, what these see of the rows that come by, in groups that share neither rows nor keys.
    pub rounds: Vec<Vec<Vec<Part>>>,
}

impl Ring {
    /// Of the documents `segments`, each from its beginning.
    pub fn new(group: &Arc<Group>, segments: &Segments) -> Ring {
        let (size, rank) = (group.size(), group.rank());
        let chunks = |rank| chunks(segments.tokens(), size, rank);
        let mine = chunks(rank);
        let whole = segments.iter().map(|s| s.start..s.start + s.len);
        let whole: Vec<Range<usize>> = whole.collect();
        let runs = whole.iter().map(|document| within(document, &mine));
        let own = runs
            .map(|[early, late]| (early.start, late.end - early.start))
            .filter(|(_, len)| *len > 0)
            .collect();
        let round = |step: usize| {
            let other = (rank + size - step) % size;
            let theirs = chunks(other);
            let part = |document| {
                let [early, late] = within(document, &mine);
                let [first, second] = within(document, &theirs);
                // Their first chunk lies before both of mine, and their second behind; or both between mine.
                let (rows, keys) = match other < rank {
                    true => (early.start..late.end, first),
                    false => (late, first.start..second.end),
                };
                (!rows.is_empty() && !keys.is_empty()).then_some(Part {
                    start: rows.start,
                    len: rows.len(),
                    first_key: keys.start,
                    keys: keys.len(),
                    gap: 0, // without a window nobody asks
                })
            };
            vec![whole.iter().filter_map(part).collect()]
        };
        Ring {
            group: group.clone(),
            rows: (0..size)
                .map(|rank| rows(segments.tokens(), size, rank))
                .collect(),
            whole: Views {
                own,
                rounds: std::iter::once(Vec::new())
                    .chain((1..size).map(round))
                    .collect(),
            },
            chunked: Views::of_chunks(&whole, size, rank, segments.tokens()),
        }
    }

    /// The ranks.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Rows of the rank whose rows come by in a round, or go home in the last; in round 0 they are this one's.
    pub(crate) fn rows(&self, round: usize) -> usize {
        let size = self.group.size();
        self.rows[(self.group.rank() + size - round % size) % size]
    }

    /// What rows see through a window.
    pub(crate) fn views(&self, window: usize) -> &Views {
        match window {
            NO_WINDOW => &self.whole,
            _ => &self.chunked,
        }
    }
}

impl Views {
    /// Chunk by chunk, with the gaps between them.
    fn of_chunks(documents: &[Range<usize>], size: usize, rank: usize, tokens: usize) -> Views {
        let mine = chunks(tokens, size, rank);
        let clip = |document: &Range<usize>, chunk: &Range<usize>| {
            document.start.clamp(chunk.start, chunk.end)..document.end.clamp(chunk.start, chunk.end)
        };
        let own = documents.iter().flat_map(|document| {
            let runs = within(document, &mine);
            runs.map(|run| (run.start, run.len()))
        });
        let round = |step: usize| {
            let theirs = chunks(tokens, size, (rank + size - step) % size);
            let pairs = [(0, 0), (0, 1), (1, 0), (1, 1)];
            let before = |&(i, j): &(usize, usize)| theirs[j].end <= mine[i].start;
            let group = |(i, j): (usize, usize)| {
                let part = |document| {
                    let (rows, keys) = (&within(document, &mine)[i], &within(document, &theirs)[j]);
                    let (row, key) = (clip(document, &mine[i]), clip(document, &theirs[j]));
                    (!rows.is_empty() && !keys.is_empty()).then(|| Part {
                        start: rows.start,
                        len: rows.len(),
                        first_key: keys.start,
                        keys: keys.len(),
                        gap: row.start - key.end,
                    })
                };
                documents.iter().filter_map(part).collect()
            };
            pairs.into_iter().filter(before).map(group).collect()
        };
        Views {
            own: own.filter(|(_, len)| *len > 0).collect(),
            rounds: (0..size).map(round).collect(),
        }
    }
}

/// Where the rows of a document lie on a rank, those of each chunk; the second follow the first.
fn within(document: &Range<usize>, chunks: &[Range<usize>; 2]) -> [Range<usize>; 2] {
    let mut before = 0;
    let mut runs = chunks.clone().map(|chunk| {
        let inside = |at: usize| before + at.clamp(chunk.start, chunk.end) - chunk.start;
        let run = inside(document.start)..inside(document.end);
        before += chunk.len();
        run
    });
    // What is missing of one chunk is nothing beside the other.
    if runs[0].is_empty() {
        runs[0] = runs[1].start..runs[1].start;
    }
    if runs[1].is_empty() {
        runs[1] = runs[0].end..runs[0].end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::Axis;
    use crate::{MeshShape, threads};

    /// Every token sees each token of its document up to itself, once, wherever they lie.
    #[test]
    fn every_token_sees_what_comes_before_it_in_its_document() {
        let packings: [&[usize]; 5] = [&[40], &[3, 30, 7], &[1], &[5, 5, 5, 5], &[2; 9]];
        for (size, lengths) in [1, 2, 3, 4, 8]
            .into_iter()
            .flat_map(|s| packings.map(|l| (s, l)))
        {
            let segments = Segments::packed(lengths);
            let tokens = segments.tokens();
            let place = |rank: usize, row: usize| {
                let chunks = chunks(tokens, size, rank);
                chunks.into_iter().flatten().nth(row).expect("a row")
            };
            let mut sizes = [1; 4];
            sizes[Axis::Sequence as usize] = size;
            let seen = threads::run(MeshShape { sizes }, |mesh| {
                let (group, rank) = (mesh.along(Axis::Sequence), mesh.rank());
                let ring = Ring::new(group, &segments);
                assert_eq!(ring.rows(0), rows(tokens, size, rank));
                assert_eq!(ring.rows(size), ring.rows(0));
                let mut seen = Vec::new(); // pairs of tokens
                let mut chunked = Vec::new();
                for (views, seen, window) in [
                    (ring.views(NO_WINDOW), &mut seen, NO_WINDOW),
                    (ring.views(1), &mut chunked, 1),
                ] {
                    for &(start, len) in &views.own {
                        let rows = start..start + len;
                        let pairs = rows.flat_map(|row| (start..=row).map(move |key| (row, key)));
                        for (row, key) in pairs {
                            let (row_place, key_place) = (place(rank, row), place(rank, key));
                            assert!(window > 1 || row_place - key_place == row - key);
                            seen.push((row_place, key_place));
                        }
                    }
                    for (round, groups) in views.rounds.iter().enumerate() {
                        let other = (rank + size - round) % size;
                        assert_eq!(ring.rows(round), rows(tokens, size, other));
                        for part in groups.iter().flatten() {
                            for row in 0..part.len {
                                for key in 0..part.keys {
                                    let row_place = place(rank, part.start + row);
                                    let key_place = place(other, part.first_key + key);
                                    let distance = part.keys - key + part.gap + row;
                                    assert!(window > 1 || row_place - key_place == distance);
                                    seen.push((row_place, key_place));
                                }
                            }
                        }
                    }
                }
                Ok::<_, ()>((seen, chunked))
            });
            let (whole, chunked): (Vec<_>, Vec<_>) = seen.unwrap().into_iter().unzip();
            let [mut seen, mut chunked] = [whole.concat(), chunked.concat()];
            seen.sort_unstable();
            chunked.sort_unstable();
            assert_eq!(chunked, seen, "{size} ranks, {lengths:?}, chunk by chunk");
            let wanted: Vec<(usize, usize)> = segments
                .iter()
                .flat_map(|s| (s.start..s.start + s.len).map(|token| (s.start, token)))
                .flat_map(|(start, token)| (start..=token).map(move |key| (token, key)))
                .collect();
            assert_eq!(seen, wanted, "{size} ranks, {lengths:?}");
        }
    }

    #[test]
    fn each_rank_has_as_much_to_do_in_each_round() {
        let segments = Segments::packed(&[64]);
        let sizes = [1, 1, 4, 1];
        let work = threads::run(MeshShape { sizes }, |mesh| {
            let ring = Ring::new(mesh.along(Axis::Sequence), &segments);
            let work = |groups: &Vec<Vec<Part>>| -> usize {
                groups.iter().flatten().map(|p| p.len * p.keys).sum()
            };
            let rounds = &ring.views(NO_WINDOW).rounds[1..];
            Ok::<_, ()>(rounds.iter().map(work).collect::<Vec<_>>())
        });
        assert_eq!(work.unwrap(), vec![vec![128; 3]; 4]);
    }
}
