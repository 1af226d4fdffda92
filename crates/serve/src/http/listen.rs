//! Connections: taken while there is room, left alone for no longer than patience lasts, ended in order.

use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::linger::Lingering;
use super::{Shared, router};
use crate::{Limits, Tls};

/// How often the wish to stop is looked at.
const GLANCE: Duration = Duration::from_millis(50);
/// After what was called off at the end of the drain, so much for saying so.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Serves until `stop`, then lets connections end.
pub(crate) async fn serve(
    listener: StdListener,
    tls: Option<&Tls>,
    state: Shared,
    stop: Arc<AtomicBool>,
) -> std::io::Result<()> {
    let draining = || state.draining.store(true, Ordering::SeqCst);
    let call_off = || state.worker.cancel_all();
    let router = router(state.clone());
    connections(
        listener,
        tls,
        router,
        &state.limits,
        stop,
        draining,
        call_off,
    )
    .await
}

/// Answers connections by a router until `stop`. Then `draining` is called, and, where some do not end in time, `call_off`.
pub(crate) async fn connections(
    listener: StdListener,
    tls: Option<&Tls>,
    router: Router,
    limits: &Limits,
    stop: Arc<AtomicBool>,
    draining: impl FnOnce(),
    call_off: impl FnOnce(),
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let most = limits.connections;
    let room = Arc::new(Semaphore::new(most));
    let (going, gone) = watch::channel(false);
    loop {
        let accepted = tokio::select! {
            () = wished(&stop) => break,
            accepted = accept(&listener, &room) => accepted,
        };
        let Ok((stream, permit)) = accepted else {
            // Out of file descriptors, or a connection that was gone before it was taken: others go on.
            tracing::warn!("a connection could not be taken");
            tokio::time::sleep(GLANCE).await;
            continue;
        };
        let (router, gone, patience) = (router.clone(), gone.clone(), limits.patience);
        let tls = tls.cloned();
        tokio::spawn(async move {
            let _permit = permit;
            let Some(tls) = tls else {
                return connection(stream, router, gone, patience).await;
            };
            // Who does not shake hands in time is no client.
            let shaken = tokio::time::timeout(patience, tls.acceptor().accept(stream)).await;
            if let Ok(Ok(stream)) = shaken {
                connection(stream, router, gone, patience).await;
            }
        });
    }
    draining();
    drop(listener);
    let _ = going.send(true);
    tracing::info!(open = most - room.available_permits(), "stopping");
    let most = u32::try_from(most).unwrap_or(u32::MAX);
    let all = || tokio::time::timeout(limits.drain, room.acquire_many(most));
    if all().await.is_err() {
        call_off();
        let rest = tokio::time::timeout(LAST_WORDS, room.acquire_many(most));
        let _ = rest.await;
    }
    tracing::info!("stopped");
    Ok(())
}

async fn wished(stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        tokio::time::sleep(GLANCE).await;
    }
}

/// The next connection, when there is room for one.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = room.clone().acquire_owned().await;
    let permit = permit.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    let _ = stream.set_nodelay(true); // a token is a small packet
    Ok((stream, permit))
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    mut gone: watch::Receiver<bool>,
    patience: Duration,
) {
    let service = TowerToHyperService::new(router);
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .serve_connection(TokioIo::new(Lingering::new(stream, patience)), service);
    let mut served = std::pin::pin!(served);
    tokio::select! {
        _ = served.as_mut() => return,
        _ = gone.wait_for(|gone| *gone) => {}
    }
    served.as_mut().graceful_shutdown();
    let _ = served.await;
}
