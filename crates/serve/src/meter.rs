//! How much a key may ask for, and how much it has.
//!
//! Requests and tokens of a minute are buckets: full at the beginning, filled again evenly over a minute. A request takes one; it
//! begins while there is a token left, and what it takes beyond is owed before the next may begin.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{ApiError, ApiResult};

/// How much a key may ask for; `None`: as much as it likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allowance {
    pub requests: Option<u32>,
    pub tokens: Option<u32>,
    pub at_once: Option<u32>,
}

impl Allowance {
    /// Takes in a word of a key's line, `at-once=4`; whether it is one.
    pub fn take(&mut self, word: &str) -> bool {
        let Some((name, number)) = word.split_once('=') else {
            return false;
        };
        let limit = match name {
            "requests-per-minute" => &mut self.requests,
            "tokens-per-minute" => &mut self.tokens,
            "at-once" => &mut self.at_once,
            _ => return false,
        };
        let number = number.parse().ok().filter(|&number| number > 0);
        let known = number.is_some() && limit.is_none();
        *limit = number;
        known
    }
}

/// What a key has used.
#[derive(Debug)]
pub(crate) struct Meter {
    allowance: Allowance,
    used: Mutex<Used>,
}

#[derive(Debug)]
struct Used {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    open: u32,
}

/// A minute's worth.
#[derive(Debug)]
struct Bucket {
    most: f64,
    left: f64, // below 0: owed
    at: Instant,
}

impl Bucket {
    fn full(most: u32, now: Instant) -> Bucket {
        let most = f64::from(most);
        Bucket {
            most,
            left: most,
            at: now,
        }
    }

    /// Fills it up to `now`; after how many seconds one can be taken, 0 at once.
    fn wait(&mut self, now: Instant) -> u64 {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + seconds * self.most / 60.0).min(self.most);
        self.at = self.at.max(now);
        let missing = (1.0 - self.left).max(0.0);
        (missing * 60.0 / self.most).ceil() as u64
    }

    /// What may be told of it.
    fn state(&mut self, now: Instant) -> BucketState {
        self.wait(now);
        let seconds = (self.most - self.left) * 60.0 / self.most;
        BucketState {
            limit: self.most as u64,
            remaining: self.left.max(0.0) as u64,
            full_in: Duration::from_secs_f64(seconds.max(0.0)),
        }
    }
}

/// How a minute's worth stands.
pub(crate) struct BucketState {
    pub limit: u64,
    /// 0 where something is owed too.
    pub remaining: u64,
    /// After how long all of it is there again.
    pub full_in: Duration,
}

impl BucketState {
    /// That time as OpenAI writes it: `120ms`, `7s`, `1m30s`; not less than it is.
    pub fn reset(&self) -> String {
        let milliseconds = self.full_in.as_secs_f64() * 1e3;
        let seconds = (milliseconds / 1e3).ceil() as u64;
        match (milliseconds.ceil() as u64, seconds) {
            (few @ 0..1000, _) => format!("{few}ms"),
            (_, 0..60) => format!("{seconds}s"),
            _ => format!("{}m{}s", seconds / 60, seconds % 60),
        }
    }
}

/// A request that is open; it is not any more when this goes.
#[derive(Debug)]
pub(crate) struct Pass(Arc<Meter>);

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.lock().open -= 1;
    }
}

impl Meter {
    pub fn new(allowance: Allowance) -> Arc<Meter> {
        let now = Instant::now();
        let bucket = |most: Option<u32>| most.map(|most| Bucket::full(most, now));
        Arc::new(Meter {
            used: Mutex::new(Used {
                requests: bucket(allowance.requests),
                tokens: bucket(allowance.tokens),
                open: 0,
            }),
            allowance,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a request begin, or says when it may.
    pub fn enter(self: &Arc<Meter>, now: Instant) -> ApiResult<Pass> {
        let mut used = self.lock();
        if let Some(most) = self.allowance.at_once
            && used.open >= most
        {
            let said = format!("this key has as many requests open as it may at once: {most}");
            return Err(ApiError::limited(said, 1));
        }
        let wait = used.tokens.as_mut().map_or(0, |tokens| tokens.wait(now));
        if wait > 0 {
            let most = self.allowance.tokens.unwrap_or(0);
            let said = format!("this key has used its {most} tokens a minute");
            return Err(ApiError::limited(said, wait));
        }
        let wait = used
            .requests
            .as_mut()
            .map_or(0, |requests| requests.wait(now));
        if wait > 0 {
            let most = self.allowance.requests.unwrap_or(0);
            let said = format!("this key has made its {most} requests a minute");
            return Err(ApiError::limited(said, wait));
        }
        if let Some(requests) = &mut used.requests {
            requests.left -= 1.0;
        }
        used.open += 1;
        Ok(Pass(self.clone()))
    }

    /// How its limits a minute stand, those it has: of `requests`, of `tokens`.
    pub fn standing(&self, now: Instant) -> Vec<(&'static str, BucketState)> {
        let mut used = self.lock();
        let Used {
            requests, tokens, ..
        } = &mut *used;
        [("requests", requests), ("tokens", tokens)]
            .into_iter()
            .filter_map(|(of, bucket)| Some((of, bucket.as_mut()?.state(now))))
            .collect()
    }

    /// Counts tokens, read or made.
    pub fn spend(&self, tokens: usize) {
        if let Some(bucket) = &mut self.lock().tokens {
            bucket.left -= tokens as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(words: &[&str]) -> Arc<Meter> {
        let mut allowance = Allowance::default();
        assert!(words.iter().all(|word| allowance.take(word)), "{words:?}");
        Meter::new(allowance)
    }

    #[track_caller]
    fn refused(meter: &Arc<Meter>, now: Instant) -> String {
        meter.enter(now).unwrap_err().message().to_owned()
    }

    #[test]
    fn a_bucket_fills_again_evenly() {
        let (meter, now) = (meter(&["requests-per-minute=3"]), Instant::now());
        for _ in 0..3 {
            drop(meter.enter(now).unwrap());
        }
        assert!(refused(&meter, now).contains("3 requests a minute"));
        assert!(meter.enter(now + Duration::from_secs(19)).is_err());
        assert!(meter.enter(now + Duration::from_secs(21)).is_ok());
        assert!(meter.enter(now + Duration::from_secs(22)).is_err());
        // However long nobody asks, there is a minute's worth.
        let later = now + Duration::from_secs(6000);
        assert_eq!((0..9).filter(|_| meter.enter(later).is_ok()).count(), 3);
    }

    #[test]
    fn tokens_are_owed_before_the_next_request() {
        let (meter, now) = (meter(&["tokens-per-minute=60"]), Instant::now());
        drop(meter.enter(now).unwrap());
        meter.spend(59);
        drop(meter.enter(now).unwrap());
        meter.spend(31);
        assert!(refused(&meter, now).contains("60 tokens a minute"));
        assert!(meter.enter(now + Duration::from_secs(30)).is_err());
        assert!(meter.enter(now + Duration::from_secs(32)).is_ok());
    }

    #[test]
    fn what_is_told_of_a_minute_is_how_it_stands() {
        let meter = meter(&["requests-per-minute=6", "tokens-per-minute=60"]);
        let now = Instant::now();
        drop(meter.enter(now).unwrap());
        meter.spend(90);
        let told = |after: u64| {
            let standing = meter.standing(now + Duration::from_secs(after));
            standing
                .into_iter()
                .map(|(of, stands)| (of, stands.limit, stands.remaining, stands.reset()))
                .collect::<Vec<_>>()
        };
        // 90 of 60 tokens: 30 are owed, and a token comes back a second.
        let (ten, ninety, fifty) = ("10s".to_owned(), "1m30s".to_owned(), "50s".to_owned());
        assert_eq!(
            told(0),
            [("requests", 6, 5, ten), ("tokens", 60, 0, ninety)]
        );
        let full = "0ms".to_owned();
        assert_eq!(
            told(40),
            [("requests", 6, 6, full), ("tokens", 60, 10, fifty)]
        );
        assert!(Meter::new(Allowance::default()).standing(now).is_empty());
    }

    #[test]
    fn what_has_ended_is_not_open() {
        let (meter, now) = (meter(&["at-once=2"]), Instant::now());
        let (first, _second) = (meter.enter(now).unwrap(), meter.enter(now).unwrap());
        assert!(refused(&meter, now).contains("as it may at once: 2"));
        drop(first);
        assert!(meter.enter(now).is_ok());
        for word in [
            "at-once",
            "at-once=0",
            "at-once=-1",
            "at-once=x",
            "at-most=3",
        ] {
            assert!(!Allowance::default().take(word), "{word}");
        }
        let mut twice = Allowance::default();
        assert!(twice.take("at-once=1") && !twice.take("at-once=2"));
    }
}
