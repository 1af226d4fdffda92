//! The model card of a package. No time goes into it: the same stage leaves the same bytes.

use crate::{Report, Settings};

/// The `README.md` of a package.
pub(crate) fn model_card(settings: &Settings, report: &Report) -> String {
    let rows = [
        (
            "bits a weight of the projections",
            format!("{:.3}", report.bpw),
        ),
        (
            "bits a parameter of the whole",
            format!("{:.3}", report.bits_per_parameter),
        ),
        ("bytes of all tensors", report.bytes.to_string()),
        (
            "loss on the calibration text, before and after",
            format!(
                "{:.4}, {:.4} nats per token",
                report.loss_before, report.loss_after
            ),
        ),
        (
            "calibration",
            format!(
                "{} tokens in sequences of at most {}",
                report.calibration_tokens, settings.sequence
            ),
        ),
    ];
    let mut card = String::from(
        "---\npipeline_tag: text-generation\ntags: [russet, palettized]\n---\n\n# Palettized package\n\n\
         A checkpoint whose projections were replaced by 2- and 4-bit indices into tables and whose embedding has 8 bits. \
         Russet uses it in place; what each tensor is stands under `quantization_config` in `config.json`.\n\n| | |\n|---|---|\n",
    );
    for (name, value) in rows {
        card += &format!("| {name} | {value} |\n");
    }
    card + "\nSettings, inputs and hashes stand in `manifest.json`, the bits of each projection in `palettize.json`.\n"
}
