use super::*;
use crate::Price;
use crate::common;
use crate::loader::Batches;
use crate::settings::{AdaStarSettings, Decay, ScheduleSettings, WsdSettings};
use crate::{NextToken, Objective};
use russet_tensor::{Ctx, Gradients};
use std::sync::Arc;

fn plan(dir: &Path, changes: &[&str]) -> Plan {
    Plan::new(common::settings(changes), dir).unwrap()
}

#[test]
fn what_was_left_open_is_filled_in() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = common::tokens(dir.path());
    let plan = plan(&tokens, &[]);
    let settings = plan.settings();
    assert_eq!(
        (settings.model.head_dim, settings.model.context),
        (Some(8), Some(32))
    );
    assert_eq!(
        (
            plan.config().vocab,
            plan.config().rope_theta,
            plan.config().tied
        ),
        (300, 500_000.0, true)
    );
    let eos = plan.config().bos.unwrap();
    assert!(plan.config().eos.contains(&eos));
    let description = plan.describe();
    assert_eq!(
        (description.tokens_per_step, description.tokens),
        (128, 30 * 128)
    );
    assert!(
        description.to_string().contains("30 steps of 128 tokens"),
        "{description}"
    );
}

#[test]
fn tokens_are_rounded_up_to_steps_and_say_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = common::tokens(dir.path());
    let by_steps = plan(&tokens, &[]);
    let mut settings: Settings = common::settings(&["train.tokens=3800"]);
    settings.train.steps = None;
    let by_tokens = Plan::new(settings, &tokens).unwrap();
    assert_eq!(by_tokens.steps(), 30);
    assert_eq!(
        by_tokens.stage(&common::tool()).unwrap().key(),
        by_steps.stage(&common::tool()).unwrap().key()
    );
}

#[test]
fn the_key_changes_with_what_matters_only() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = common::tokens(dir.path());
    let key = |changes: &[&str]| plan(&tokens, changes).stage(&common::tool()).unwrap().key();
    let base = key(&[]);
    for idle in [
        "compute.threads=2",
        "train.log_every=7",
        "train.checkpoint_every=9",
        "train.validate_every=4",
        "train.keep_last=3",
        "train.spike_deviations=2.5",
    ] {
        assert_eq!(key(&[idle]), base, "{idle}");
    }
    let keeps_best = ["train.keep_best=true", "train.validate_every=4"];
    assert_eq!(key(&keeps_best), base);
    for matters in [
        "train.seed=1",
        "train.steps=31",
        "train.micro_batch_sequences=4",
        "model.ffn=96",
        "optimizer.beta2=0.99",
        "optimizer.kind=adastar",
        "schedule.kind=constant",
        "train.ema=0.9",
        "train.skip_norm=50",
        "data.packing=best-fit",
        "model.rope_theta=10000",
    ] {
        assert_ne!(key(&[matters]), base, "{matters}");
    }
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = common::tokens(dir.path());
    for (change, part) in [
        (
            "train.tokens=100",
            "`train.tokens` stands beside `train.steps`",
        ),
        (
            "train.micro_batch_sequences=3",
            "does not divide the batch of 4",
        ),
        ("train.warmup_steps=31", "more than all 30 steps"),
        ("train.peak_lr=0.0", "`train.peak_lr`"),
        ("optimizer.beta1=1.0", "`optimizer.beta1`"),
        ("optimizer.epsilon=1e-40", "`optimizer.epsilon`"),
        ("optimizer.weight_decay=1000.0", "`optimizer.weight_decay`"),
        ("train.skip_norm=-1.0", "`train.skip_norm`"),
        ("train.ema=1.0", "`train.ema`"),
        ("train.keep_last=0", "`train.keep_last`"),
        ("train.final_lr_ratio=2", "`train.final_lr_ratio`"),
        ("train.clip_norm=-1.0", "`train.clip_norm`"),
        ("train.log_every=0", "`train.log_every`"),
        ("train.batch_sequences=0", "`train.batch_sequences` is 0"),
        ("compute.threads=0", "`compute.threads`"),
        (
            "model.kv_heads=3",
            "4 query heads cannot be shared out over 3",
        ),
        ("model.heads=5", "`model.head_dim` is missing"),
        ("model.sliding_window=0", "`model.sliding_window` is 0"),
        (
            "model.layer_types=['sliding_attention']",
            "`model.layer_types` has layers that slide, but `model.sliding_window`",
        ),
        (
            "model.num_kv_shared_layers=2",
            "`num_kv_shared_layers` is 2, but of 2 layers",
        ),
        ("data.train=books", "books.tokens.safetensors"),
        ("data.validation=none", "none.tokens.safetensors"),
    ] {
        let problem = Plan::new(common::settings(&[change]), &tokens)
            .unwrap_err()
            .to_string();
        assert!(problem.contains(part), "{change}: {problem}");
    }
}

#[test]
fn a_type_or_a_way_to_recompute_that_is_unknown_is_refused() {
    let parse = |change: &str| {
        let text = "[model]\nwidth = 32\nlayers = 2\nheads = 4\nkv_heads = 2\nffn = 64\n[train]\nsteps = 1\n\
                    batch_sequences = 1\nsequence_length = 8\npeak_lr = 1e-2";
        Recipe::from_text("recipe", text, &[change.parse().unwrap()])
            .unwrap()
            .parse::<Settings>()
    };
    assert!(parse("compute.dtype=bf16").is_ok() && parse("compute.recompute=block").is_ok());
    for (change, part) in [
        ("compute.dtype=f16", "`f32` or `bf16`"),
        ("compute.recompute=all", "`none` or `block`"),
    ] {
        let problem = parse(change).unwrap_err().to_string();
        assert!(problem.contains(part), "{change}: {problem}");
    }
}

#[test]
fn memory_by_formula_is_memory_used() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = common::tokens(dir.path());
    let sharing = ["model.num_kv_shared_layers=2", "model.sliding_window=8"];
    for (micro_batch, recompute, more) in [
        (1, "none", &[][..]),
        (4, "none", &[]),
        (4, "block", &[]),
        (4, "none", &sharing),
        (4, "block", &sharing),
    ] {
        let given = [
            &format!("train.micro_batch_sequences={micro_batch}"),
            &format!("compute.recompute={recompute}"),
            "model.layers=4",
        ];
        let plan = plan(&tokens, &[&given[..], more].concat());
        let mut ctx = Ctx::new(Arc::new(plan.settings().compute.pool(1).unwrap()));
        ctx.recompute = recompute == "block";
        let decoder = russet_model::Decoder::random(plan.config(), 1);
        let mut gradients = Gradients::default();
        for batch in plan.open_train().unwrap().next().unwrap() {
            ctx.start_tape(
                decoder
                    .parameters()
                    .iter()
                    .map(|parameter| parameter.tensor.id()),
            );
            let loss = NextToken.loss(&decoder, &mut ctx, &batch).loss;
            ctx.backward(&loss, 1.0, &mut gradients);
        }
        let memory = plan.describe().memory;
        let ratio = ctx.peak_bytes() as f64 / (memory.gradients + memory.activations) as f64;
        // While the first weight gradients appear, activations go: the sum of both is not quite reached.
        assert!(
            (0.75..1.05).contains(&ratio),
            "micro-batches of {micro_batch}, recompute {recompute}, {more:?}: {ratio}"
        );
    }
}

#[test]
fn the_price_before_there_are_tokens_is_that_of_the_plan() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = common::tokens(dir.path());
    let description = plan(&tokens, &[]).describe();
    let price = Price::new(common::settings(&[]), description.vocab, None).unwrap();
    assert_eq!(
        (
            price.parameters,
            price.steps,
            price.tokens,
            price.flops,
            price.memory
        ),
        (
            description.parameters,
            description.steps,
            description.tokens,
            description.flops,
            description.memory
        )
    );
    let rate = Rate {
        gflops: 2.0,
        reaches: 0.5,
    };
    let estimate = price.estimate(rate);
    assert_eq!(estimate.seconds_at_peak, price.flops / 2e9);
    assert_eq!(estimate.seconds, price.flops / 1e9);
}

#[test]
fn rules_and_schedules_have_their_own_keys() {
    let parse = |text: &str| {
        let recipe = format!(
            "[model]\n[train]\npeak_lr = 0.01\nbatch_sequences = 1\nsequence_length = 8\n{text}"
        );
        Recipe::from_text("recipe", &recipe, &[])
            .unwrap()
            .parse::<Settings>()
    };
    let settings = parse("[optimizer]\nkind = \"adastar\"\n[schedule]\nkind = \"wsd\"").unwrap();
    let adastar = AdaStarSettings {
        beta1: 0.95,
        beta2: 0.95,
        epsilon: 1e-30,
        clip_rms: 1.0,
        weight_decay: 3.16e-4,
        mup_base_width: 768,
    };
    assert_eq!(settings.optimizer, OptimizerSettings::AdaStar(adastar));
    let wsd = WsdSettings {
        decay_share: 0.2,
        decay: Decay::Sqrt,
    };
    assert_eq!(settings.schedule, ScheduleSettings::Wsd(wsd));
    assert_eq!(
        (settings.train.clip_norm, settings.train.skip_norm),
        (1.0, 100.0)
    );
    for (text, part) in [
        ("[optimizer]\nkind = \"adamw\"\nclip_rms = 1", "clip_rms"),
        ("[optimizer]\nkind = \"rmsprop\"\nbeta1 = 0.9", "beta1"),
        ("[optimizer]\nkind = \"sgd\"", "sgd"),
        ("[optimizer]\nbeta1 = 0.9", "kind"),
        (
            "[schedule]\nkind = \"cosine\"\ndecay_share = 0.1",
            "decay_share",
        ),
        ("[schedule]\nkind = \"constant\"\ndecay = \"sqrt\"", "decay"),
        ("[schedule]\nkind = \"wsd\"\nshare = 0.1", "share"),
    ] {
        let problem = parse(text).unwrap_err().to_string();
        assert!(problem.contains(part), "{text}: {problem}");
    }
}

#[test]
fn settings_that_do_not_go_together_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = common::tokens(dir.path());
    for (changes, part) in [
        (
            &["schedule.kind=constant", "train.final_lr_ratio=0.1"][..],
            "stands beside a constant schedule",
        ),
        (
            &["schedule.kind=wsd", "schedule.decay_share=0.95"],
            "29 steps of decay, which with `train.warmup_steps` 3",
        ),
        (
            &[
                "data.mixture=[{split='validation', weight=1}]",
                "data.train=train",
            ],
            "`data.train` stands beside",
        ),
        (&["train.keep_best=true"], "`train.validate_every` is 0"),
        (&["model.context=8"], "`model.context` is 8, less than"),
        (&["optimizer.beta2=0.99999999"], "in single precision too"),
        (
            &["data.mixture=[{split='train', weight=0}]"],
            "of `train` is 0",
        ),
        (
            &["data.mixture=[{split='code', weight=1}]"],
            "code.tokens.safetensors",
        ),
    ] {
        let problem = Plan::new(common::settings(changes), &tokens)
            .unwrap_err()
            .to_string();
        assert!(problem.contains(part), "{changes:?}: {problem}");
    }
    for (change, part) in [
        ("train.keep_best=true", "`train.keep_best` needs a loss"),
        (
            "train.seed=1",
            "`train.validation_tokens` is there, but nothing",
        ),
        (
            "train.validate_every=5",
            "`train.validate_every` is there, but nothing",
        ),
    ] {
        let mut settings: Settings = common::settings(&[change]);
        settings.data.validation = None;
        let problem = Plan::new(settings, &tokens).unwrap_err().to_string();
        assert!(problem.contains(part), "{problem}");
    }
}

#[test]
fn a_model_that_no_machine_holds_is_refused_with_a_sentence() {
    if !Path::new("/proc/meminfo").exists() {
        eprintln!("skipped: the system does not say how much memory is free");
        return;
    }
    let memory = |changes: &[&str]| {
        let price = Price::new(common::settings(changes), 300, None).unwrap();
        price.memory.check().map_err(|error| error.to_string())
    };
    memory(&[]).unwrap();
    let problem = memory(&["model.width=65536", "model.ffn=1000000"]).unwrap_err();
    assert!(
        problem.starts_with("`model` with this batch needs"),
        "{problem}"
    );
}

#[test]
fn a_mixture_is_described_and_labelled_source_by_source() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = common::tokens(dir.path());
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let other = common::tokens(&other);
    let mixture =
        "data.mixture=[{split='train', weight=3}, {tokens='other', split='train', weight=1}]";
    let sources = Sources {
        mixture: vec![None, Some(other)],
        ..Sources::from(&tokens)
    };
    let plan = Plan::new(common::settings(&[mixture]), sources).unwrap();
    let described = plan.describe().sources;
    let view = |source: &SourceDescription| (source.name.clone(), source.share, source.documents);
    assert_eq!(
        described.iter().map(view).collect::<Vec<_>>(),
        [
            ("train".to_owned(), 0.75, 60),
            ("train-2".to_owned(), 0.25, 60)
        ]
    );
    let taken = ["books-2", "books"];
    assert_eq!(label("books", |label| taken.contains(&label)), "books-3");
    assert_eq!(label("per_second", |_| false), "per_second-2");
    let names = plan.open_train().unwrap().names();
    assert!(names[0].contains("/tokens/train.") && names[1].contains("/other/tokens/train."));
    let stage = plan.stage(&common::tool()).unwrap();
    let alone = Plan::new(common::settings(&[]), &tokens).unwrap();
    assert_ne!(stage.key(), alone.stage(&common::tool()).unwrap().key());
}

#[test]
fn a_chain_of_stages_is_priced_before_any_has_run() {
    let shape = |settings: Settings, start: Option<&Config>| {
        let settings = settings.resolved(Start::from(start)).unwrap();
        settings.decoder(300, start).unwrap()
    };
    let core = shape(common::settings(&[]), None);
    assert_eq!((core.context, core.rope_theta), (32, 500_000.0));
    let mut longer: Settings =
        common::settings(&["train.sequence_length=128", "model.rope_theta=6315089"]);
    let problem = Price::new(longer.clone(), 300, Some(&core))
        .unwrap_err()
        .to_string();
    assert!(
        problem.contains("`model.width` stands beside `inputs.checkpoint`"),
        "{problem}"
    );
    longer.model = crate::settings::ModelSettings {
        rope_theta: longer.model.rope_theta,
        ..Default::default()
    };
    let price = Price::new(longer.clone(), 300, Some(&core)).unwrap();
    assert_eq!(
        (price.parameters, price.tokens),
        (core.parameters(), 30 * 4 * 128)
    );
    let lengthened = shape(longer, Some(&core));
    assert_eq!(
        (lengthened.context, lengthened.rope_theta),
        (128, 6_315_089.0)
    );
    assert_eq!(lengthened.width, 32);
}

#[test]
fn resolving_twice_changes_nothing() {
    let once = common::settings::<Settings>(&[]);
    let once = once.resolved(Start::Random).unwrap();
    assert_eq!(once.clone().resolved(Start::Random).unwrap(), once);
    assert!(once.model.head_dim.is_some() && once.train.warmup_steps.is_some());

    // Ahead of the checkpoint that it begins with, and again with its shape.
    let shape = once.decoder(300, None).unwrap();
    let mut next: Settings = common::settings(&["train.sequence_length=64"]);
    next.model = Default::default();
    let ahead = next.clone().resolved(Start::ToCome).unwrap();
    assert_eq!(ahead.model, Default::default());
    let start = Start::Checkpoint(&shape);
    let known = ahead.resolved(start).unwrap();
    assert_eq!(known, next.resolved(start).unwrap());
    assert_eq!(
        (known.model.context, known.model.rope_theta),
        (Some(64), Some(500_000.0))
    );
    assert_eq!(known.clone().resolved(start).unwrap(), known);
}
