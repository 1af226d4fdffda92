//! `serve`: a model behind OpenAI's API.

use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use russet_engine::{CacheSize, Engine, EngineConfig, PromptLookup, Reuse};
use russet_serve::{Keys, Limits, Server, Settings, Tls, new_key};
use serde_json::json;

use crate::app::{App, Model, Usage, base, by_option};
use crate::args::CacheArgs;

/// What says how to serve and so has nothing to say beside `--new-key`. (`exclusive` would refuse `--json` too.)
const OF_SERVING: [&str; 21] = [
    "model",
    "name",
    "host",
    "port",
    "api_keys",
    "tls_cert",
    "tls_key",
    "insecure",
    "adapter",
    "adapter_dir",
    "adapter_mib",
    "context",
    "slots",
    "queue",
    "cache_mib",
    "cache_type",
    "no_prefix_cache",
    "prompt_lookup",
    "deadline",
    "drain",
    "body_mib",
];

#[derive(Args)]
pub struct ServeArgs {
    /// A checkpoint or package
    #[arg(long, required_unless_present = "new_key")]
    pub model: Option<PathBuf>,
    /// What requests call it (default: the name of its folder)
    #[arg(long)]
    pub name: Option<String>,
    /// Address to listen on, or a name of this machine's; others than its own alone want --api-keys, --tls-cert and --tls-key
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// File of keys, hashed; without one whoever reaches the address may ask
    #[arg(long, value_name = "FILE")]
    pub api_keys: Option<PathBuf>,
    /// Certificate that the server shows, PEM, with those that it rests on behind it
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Let others reach a server that lacks keys or TLS
    #[arg(long)]
    pub insecure: bool,
    /// Print a new key and its line for the file of keys, and end
    #[arg(long, value_name = "NAME", conflicts_with_all = OF_SERVING)]
    pub new_key: Option<String>,
    /// An adapter (PEFT folder) that requests call NAME; may be given several times
    #[arg(long, value_name = "NAME=FOLDER", value_parser = adapter)]
    pub adapter: Vec<(String, PathBuf)>,
    /// Let requests load adapters from below this folder
    #[arg(long, value_name = "FOLDER")]
    pub adapter_dir: Option<PathBuf>,
    /// The most memory of loaded adapters
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub adapter_mib: usize,
    /// Tokens of one conversation, prompt and answer (default: the model's context)
    #[arg(long)]
    pub context: Option<usize>,
    /// Answers made at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    pub slots: u16,
    /// Requests that may wait; beyond them clients are told to come again
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub queue: u32,
    /// Memory of keys and values (default: a full context for each slot)
    #[arg(long, value_name = "MIB")]
    pub cache_mib: Option<usize>,
    #[command(flatten)]
    pub kept: CacheArgs,
    /// Compute every prompt whole, whatever the cache holds of others
    #[arg(long)]
    pub no_prefix_cache: bool,
    /// Guess what followed the same few tokens before; the text is the same
    #[arg(long)]
    pub prompt_lookup: bool,
    /// Seconds that an answer may take, waiting included
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub deadline: u64,
    /// Seconds that answers may go on after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=604_800))]
    pub drain: u64,
    /// The longest body of a request
    #[arg(long, value_name = "MIB", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub body_mib: u16,
}

/// `NAME=FOLDER`.
fn adapter(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, folder)) if !name.is_empty() && !folder.is_empty() => {
            Ok((name.to_owned(), folder.into()))
        }
        _ => Err("it must be NAME=FOLDER, as in tales=runs/tales".to_owned()),
    }
}

/// The address of a name, `localhost` say. Whether others reach it is asked of what it stands for, not of how it is called.
fn address(host: &str, port: u16) -> Result<SocketAddr> {
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    if let Ok(ip) = bare.unwrap_or(host).parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let found = (host, port)
        .to_socket_addrs()
        .map(|found| found.collect::<Vec<_>>());
    let (found, why) = match found {
        Ok(found) => (found, String::new()),
        Err(error) => (Vec::new(), format!(" ({error})")),
    };
    // Of `localhost` both families are there; clients that try one try this one.
    let first = found.iter().find(|address| address.is_ipv4());
    first.or(found.first()).copied().ok_or_else(|| {
        let said = format!(
            "--host {host}: this is no address, and no name that this machine knows{why}; write localhost, or an address such as \
             127.0.0.1"
        );
        Usage(said).into()
    })
}

/// Refuses a name that two adapters would share: requests could mean one of them only.
fn apart(adapters: &[(String, PathBuf)]) -> Result<()> {
    for (place, (name, folder)) in adapters.iter().enumerate() {
        let same = adapters[..place].iter().find(|(other, _)| other == name);
        if let Some((_, other)) = same {
            return Err(Usage(format!(
                "--adapter {name} is given twice, for {} and {}; requests choose an adapter by its name, so give each its own",
                other.display(),
                folder.display()
            ))
            .into());
        }
    }
    Ok(())
}

/// Serves until SIGTERM or SIGINT.
pub fn serve(app: &mut App, args: ServeArgs) -> Result<()> {
    if let Some(name) = &args.new_key {
        let (key, line) = new_key(name, true).map_err(|error| Usage(error.to_string()))?;
        let text = format!(
            "{key}\n\nThis is the key; it is shown once. Its line for the file of keys, without `adapters` for one that may not load \
             adapters:\n\n{line}"
        );
        return app.print(&json!({"key": key, "line": line}), &text);
    }
    let folder = args.model.context("--model names the model")?;
    let address = address(&args.host, args.port)?;
    apart(&args.adapter)?;
    for (_, folder) in &args.adapter {
        crate::found::adapter(folder)?;
    }
    let keys = args.api_keys.as_deref().map(Keys::read).transpose();
    let keys = keys.map_err(|error| Usage(format!("--api-keys {error}")))?;
    let tls = args.tls_cert.as_deref().zip(args.tls_key.as_deref());
    let tls = tls.map(|(certificate, key)| Tls::read(certificate, key));
    let tls = tls
        .transpose()
        .map_err(|error| Usage(format!("--tls-cert and --tls-key: {error}")))?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let model = Model::open_for_chat(&folder, None, &mut *app.progress)?;
    let name = args.name.unwrap_or_else(|| {
        let full = folder.canonicalize().unwrap_or_else(|_| folder.clone());
        let last = full
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        last.unwrap_or_else(|| "model".to_owned())
    });
    let served = russet_serve::Model {
        bos: model.bos()?,
        eos: model.eos(),
        tokenizer: model.tokenizer,
        name: name.clone(),
    };
    let most = model.decoder.config().context;
    let config = EngineConfig {
        reuse: match args.no_prefix_cache {
            true => Reuse::Never,
            false => Reuse::Tenant,
        },
        cache: args.cache_mib.map_or(CacheSize::Slots, |mib| {
            CacheSize::Bytes(mib.saturating_mul(1 << 20))
        }),
        format: args.kept.format(&model.decoder),
        queue: args.queue as usize,
        adapter_bytes: args.adapter_mib.saturating_mul(1 << 20),
        ..EngineConfig::new(args.context.unwrap_or(most), usize::from(args.slots))
    };
    let decoder = std::sync::Arc::new(model.decoder);
    let (pool, lookup) = (app.pool.clone(), args.prompt_lookup);
    let base = base(&folder);
    let make = move || {
        let mut engine = Engine::new(decoder.clone(), pool.clone(), config)?;
        if let Some(base) = &base {
            engine.adapters().name_base(base);
        }
        if lookup {
            engine.set_proposer(Some(Box::new(PromptLookup::new())));
        }
        Ok(engine)
    };
    let settings = Settings {
        address,
        keys,
        tls,
        insecure: args.insecure,
        adapters: args.adapter,
        adapter_dir: args.adapter_dir,
        fingerprint: format!("russet-{}-{}", app.tool.version, app.tool.commit),
        limits: Limits {
            body: usize::from(args.body_mib) << 20,
            answers: (args.queue as usize).min(Limits::default().answers),
            deadline: Duration::from_secs(args.deadline),
            drain: Duration::from_secs(args.drain),
            ..Limits::default()
        },
    };
    let server = Server::bind(settings, served, Box::new(make)).map_err(|error| match error {
        russet_serve::Error::Engine(error) => by_option(
            error,
            "--context, --slots and --cache-mib say how much it is",
        ),
        error => error.into(),
    })?;
    logs(app.json);
    app.stop_on_signals()?;
    let address = server.address()?;
    let url = format!("{scheme}://{address}");
    app.print(
        &json!({"url": url, "model": name}),
        &format!("{name} is served at {url}; the page for people is there too. SIGTERM or Ctrl-C ends it."),
    )?;
    server.run(app.interrupt.flag())?;
    Ok(())
}

/// From now on what the server tells of its work goes to standard error: ids, counts and times. Of a panic its place alone,
/// since what it says can quote a text.
pub fn logs(json: bool) {
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::INFO)
        .with_target(false);
    // Only the first caller of a process decides; there is one.
    let _ = match json || !std::io::stderr().is_terminal() {
        true => builder.json().try_init(),
        false => builder.compact().with_ansi(false).try_init(),
    };
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "a panic, which is a bug");
    }));
}
