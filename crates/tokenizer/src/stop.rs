//! Stop strings in a stream of text.

/// Lets text through until one of some strings appears, and holds back what may be the beginning of one.
pub struct StopFilter {
    stops: Vec<String>,
    held: String,
}

impl StopFilter {
    /// A filter for these strings; empty ones stop nothing.
    pub fn new(stops: &[String]) -> StopFilter {
        StopFilter {
            stops: stops
                .iter()
                .filter(|stop| !stop.is_empty())
                .cloned()
                .collect(),
            held: String::new(),
        }
    }

    /// What of the text so far may be shown, and whether a stop string has appeared.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(at) = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min()
        {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        // The longest tail that begins a stop string stays.
        let begins = |tail: &str| self.stops.iter().any(|stop| stop.starts_with(tail));
        let keep = self
            .held
            .char_indices()
            .map(|(at, _)| at)
            .find(|&at| begins(&self.held[at..]));
        let tail = self.held.split_off(keep.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, tail), false)
    }

    /// What was held back when the text ended.
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stops: &[&str], pieces: &[&str], want: &str, stopped: bool) {
        let mut filter =
            StopFilter::new(&stops.iter().map(ToString::to_string).collect::<Vec<_>>());
        let (mut got, mut found) = (String::new(), false);
        for piece in pieces {
            let (text, stop) = filter.push(piece);
            got.push_str(&text);
            if stop {
                found = true;
                break;
            }
        }
        if !found {
            got.push_str(&filter.finish());
        }
        assert_eq!(
            (got.as_str(), found),
            (want, stopped),
            "{stops:?} in {pieces:?}"
        );
    }

    #[test]
    fn text_passes_up_to_the_first_stop() {
        check(&["\n"], &["one", " two\nthree"], "one two", true);
        check(&["END", "ND"], &["a E", "N", "D b"], "a ", true);
        check(&["END"], &["a E", "N", "x END"], "a ENx ", true);
    }

    #[test]
    fn text_without_a_stop_passes_whole() {
        check(&[], &["all ", "of it"], "all of it", false);
        check(&["END"], &["almost the EN"], "almost the EN", false);
        check(&["é!"], &["caf", "é", "s"], "cafés", false);
        check(&[""], &["all"], "all", false);
    }
}
