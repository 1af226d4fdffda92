//! The thread that owns the engine. Handlers talk to it by channels; it knows neither HTTP nor text.
//!
//! Between two steps it takes in what came: requests, and those that nobody waits for any more. A step that panics ends the
//! requests that were on their way with an error; the engine is then made anew, and the next request finds it.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use russet_engine::{
    Engine, Error, Event, Flow, Generation, Held, Request, RequestId, Stats, Token,
};
use tokio::sync::{mpsc, oneshot};

use crate::meter::Meter;
use crate::registry::Registry;

/// Makes an engine: at the start, and again after a panic.
pub type MakeEngine = Box<dyn FnMut() -> russet_engine::Result<Engine> + Send>;

/// What the engine says of one of a ticket's requests.
#[derive(Debug)]
pub(crate) enum Told {
    /// The request at this place has another token, the most probable ones beside it where they were asked for.
    Token(usize, Token, Vec<Token>),
    /// It is over; `None`: lost, with the engine.
    End(usize, Option<Result<Generation, Error>>),
}

/// Why requests were not taken in.
#[derive(Debug)]
pub(crate) enum Refusal {
    Engine(Error),
    /// There is no engine.
    Gone,
}

enum Ask {
    Submit {
        ticket: u64,
        requests: Vec<Request>,
        answers: usize,
        told: mpsc::UnboundedSender<Told>,
        taken: oneshot::Sender<Result<(), Refusal>>,
    },
    Cancel {
        ticket: u64,
        /// `None`: all of them.
        place: Option<usize>,
    },
    CancelAll,
    Stop,
}

/// What both sides see.
struct Shared {
    stats: Mutex<Stats>,
    context: usize,
    width: usize,
    alive: AtomicBool,
    restarts: AtomicU64,
    tickets: AtomicU64,
    registry: Arc<Registry>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The handlers' end.
#[derive(Clone)]
pub(crate) struct Worker {
    ask: Sender<Ask>,
    shared: Arc<Shared>,
}

/// Requests on their way. Dropped, those that are not over are called off.
pub(crate) struct Ticket {
    id: u64,
    ask: Sender<Ask>,
    told: mpsc::UnboundedReceiver<Told>,
    meter: Option<Arc<Meter>>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let _ = self.ask.send(Ask::Cancel {
            ticket: self.id,
            place: None,
        });
    }
}

impl Ticket {
    /// Lets `meter` count its tokens.
    pub fn metered(mut self, meter: Option<Arc<Meter>>) -> Ticket {
        self.meter = meter;
        self
    }

    /// What the engine says next; `None`: it is gone.
    pub async fn next(&mut self) -> Option<Told> {
        let told = self.told.recv().await;
        if let (Some(Told::Token(..)), Some(meter)) = (&told, &self.meter) {
            meter.spend(1);
        }
        told
    }

    /// Calls the request at `place` off.
    pub fn cancel(&self, place: usize) {
        let _ = self.ask.send(Ask::Cancel {
            ticket: self.id,
            place: Some(place),
        });
    }
}

impl Worker {
    /// Starts the thread; back when the engine is there.
    pub fn start(make: MakeEngine, registry: Arc<Registry>) -> crate::Result<Worker> {
        let (ask, asked) = channel();
        let (report, reported) = channel();
        let told = registry.clone();
        let spawned = std::thread::Builder::new().name("engine".to_owned());
        let run = move || {
            let mut make = make;
            let engine = match make() {
                Ok(engine) => engine,
                Err(error) => return drop(report.send(Err(error))),
            };
            told.replace(engine.adapters().clone());
            let shared = Arc::new(Shared {
                stats: Mutex::new(engine.stats()),
                context: engine.config().context,
                width: engine.decoder().config().width,
                alive: AtomicBool::new(true),
                restarts: AtomicU64::new(0),
                tickets: AtomicU64::new(0),
                registry: told,
            });
            let _ = report.send(Ok(shared.clone()));
            Loop {
                engine,
                make,
                asked,
                shared,
                routes: BTreeMap::new(),
            }
            .run();
        };
        spawned
            .spawn(run)
            .map_err(|error| crate::Error::Start(format!("no thread for the engine: {error}")))?;
        let shared = reported
            .recv()
            .map_err(|_| crate::Error::Start("the engine panicked as it was made".to_owned()))?
            .map_err(crate::Error::Engine)?;
        Ok(Worker { ask, shared })
    }

    /// Hands requests in, each to be answered `answers` times: all of them or none. The places of a ticket count through the
    /// answers of the first request, then those of the second.
    pub async fn submit(&self, requests: Vec<Request>, answers: usize) -> Result<Ticket, Refusal> {
        // Read before they are asked for, so that whoever generates does not wait for it; kept until the engine has them.
        let _held = self.hold(&requests).await?;
        let id = self.shared.tickets.fetch_add(1, Ordering::Relaxed);
        let (told, hears) = mpsc::unbounded_channel();
        let (taken, reply) = oneshot::channel();
        let submit = Ask::Submit {
            ticket: id,
            requests,
            answers,
            told,
            taken,
        };
        self.ask.send(submit).map_err(|_| Refusal::Gone)?;
        // Made before the wait: who leaves meanwhile calls off what he asked for.
        let ticket = Ticket {
            id,
            ask: self.ask.clone(),
            told: hears,
            meter: None,
        };
        reply.await.map_err(|_| Refusal::Gone)??;
        Ok(ticket)
    }

    /// Holds the adapters that requests go through.
    async fn hold(&self, requests: &[Request]) -> Result<Vec<Held>, Refusal> {
        let names = requests.iter().flat_map(|request| &request.adapters);
        let names: BTreeSet<String> = names.cloned().collect();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let adapters = self.shared.registry.adapters().ok_or(Refusal::Gone)?;
        let hold = move || {
            let held = names.iter().map(|name| adapters.hold(name));
            held.collect::<Result<Vec<_>, _>>()
        };
        let held = tokio::task::spawn_blocking(hold).await;
        held.map_err(|_| Refusal::Gone)?.map_err(Refusal::Engine)
    }

    pub fn stats(&self) -> Stats {
        *lock(&self.shared.stats)
    }

    /// Tokens that one sequence may have.
    pub fn context(&self) -> usize {
        self.shared.context
    }

    /// D: values of a hidden state.
    pub fn width(&self) -> usize {
        self.shared.width
    }

    /// Whether there is an engine.
    pub fn is_alive(&self) -> bool {
        self.shared.alive.load(Ordering::Relaxed)
    }

    /// How often the engine was made anew.
    pub fn restarts(&self) -> u64 {
        self.shared.restarts.load(Ordering::Relaxed)
    }

    pub fn cancel_all(&self) {
        let _ = self.ask.send(Ask::CancelAll);
    }

    pub fn stop(&self) {
        let _ = self.ask.send(Ask::Stop);
    }
}

/// Where the events of a request go.
struct Route {
    ticket: u64,
    place: usize,
    told: mpsc::UnboundedSender<Told>,
    top: Vec<Token>, // of the token that comes next
}

type Routes = BTreeMap<RequestId, Route>;

struct Loop {
    engine: Engine,
    make: MakeEngine,
    asked: Receiver<Ask>,
    shared: Arc<Shared>,
    routes: Routes,
}

impl Loop {
    fn run(mut self) {
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.turn())) {
                Ok(true) => {}
                Ok(false) => return,
                Err(_) => {
                    tracing::error!(requests = self.routes.len(), "the engine panicked");
                    self.shared.restarts.fetch_add(1, Ordering::Relaxed);
                    for (_, route) in std::mem::take(&mut self.routes) {
                        let _ = route.told.send(Told::End(route.place, None));
                    }
                    if !self.begin_anew() {
                        self.shared.alive.store(false, Ordering::Relaxed);
                        tracing::error!("no engine could be made in its place");
                        return;
                    }
                }
            }
        }
    }

    fn begin_anew(&mut self) -> bool {
        let make = &mut self.make;
        let Ok(Ok(engine)) = catch_unwind(AssertUnwindSafe(make)) else {
            return false;
        };
        let former = std::mem::replace(&mut self.engine, engine);
        // What panicked may panic again as it goes.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(former)));
        self.shared.registry.replace(self.engine.adapters().clone());
        true
    }

    /// Takes in what came, and makes a step where there is something to do. Whether to go on.
    fn turn(&mut self) -> bool {
        if self.routes.is_empty() {
            *lock(&self.shared.stats) = self.engine.stats();
            match self.asked.recv() {
                Ok(ask) if !matches!(ask, Ask::Stop) => self.hear(ask),
                _ => return false,
            }
        }
        while let Ok(ask) = self.asked.try_recv() {
            if matches!(ask, Ask::Stop) {
                return false;
            }
            self.hear(ask);
        }
        if !self.routes.is_empty() {
            let routes = &mut self.routes;
            self.engine.step(&mut |event| tell(routes, event));
        }
        *lock(&self.shared.stats) = self.engine.stats();
        true
    }

    fn hear(&mut self, ask: Ask) {
        match ask {
            Ask::Submit {
                ticket,
                requests,
                answers,
                told,
                taken,
            } => {
                let submitted = self.submit(requests, answers);
                let ids = match submitted {
                    Ok(ids) => ids,
                    Err(error) => return drop(taken.send(Err(Refusal::Engine(error)))),
                };
                for (place, id) in ids.into_iter().enumerate() {
                    let route = Route {
                        ticket,
                        place,
                        told: told.clone(),
                        top: Vec::new(),
                    };
                    self.routes.insert(id, route);
                }
                let _ = taken.send(Ok(()));
            }
            Ask::Cancel { ticket, place } => {
                let meant = |route: &Route| {
                    route.ticket == ticket && place.is_none_or(|place| place == route.place)
                };
                let ids = self.routes.iter().filter(|(_, route)| meant(route));
                let ids: Vec<RequestId> = ids.map(|(&id, _)| id).collect();
                for id in ids {
                    self.engine.cancel(id);
                }
            }
            Ask::CancelAll => {
                let ids: Vec<RequestId> = self.routes.keys().copied().collect();
                for id in ids {
                    self.engine.cancel(id);
                }
            }
            Ask::Stop => {}
        }
    }

    fn submit(
        &mut self,
        requests: Vec<Request>,
        answers: usize,
    ) -> russet_engine::Result<Vec<RequestId>> {
        let mut ids = Vec::new();
        for request in requests {
            match self.engine.submit_answers(request, answers) {
                Ok(more) => ids.extend(more),
                Err(error) => {
                    for id in ids {
                        self.engine.cancel(id);
                    }
                    return Err(error);
                }
            }
        }
        Ok(ids)
    }
}

/// Passes an event on; nobody there to hear it ends the answer.
fn tell(routes: &mut Routes, event: Event) -> Flow {
    match event {
        Event::Top(id, top) => {
            if let Some(route) = routes.get_mut(&id) {
                route.top = top;
            }
            Flow::Continue
        }
        Event::Token(id, token) => match routes.get_mut(&id) {
            Some(route) => {
                let top = std::mem::take(&mut route.top);
                match route.told.send(Told::Token(route.place, token, top)) {
                    Ok(()) => Flow::Continue,
                    Err(_) => Flow::Stop,
                }
            }
            None => Flow::Stop,
        },
        Event::End(id, answer) => {
            if let Some(route) = routes.remove(&id) {
                let _ = route.told.send(Told::End(route.place, Some(answer)));
            }
            Flow::Continue
        }
    }
}
