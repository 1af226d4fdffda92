//! The model card of a package. No time goes into it: the same stage leaves the same bytes.

use russet_kernels::palette::Bits;

use crate::settings::Rotation;
use crate::{Report, Settings};

/// The `README.md` of a package.
pub(crate) fn model_card(settings: &Settings, report: &Report) -> String {
    let mut rows = vec![
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
    if settings.rotation == Rotation::Hadamard {
        let what = "random signs and Walsh-Hadamard matrices, folded into the weights";
        rows.push((
            "rotation of the residual stream and of values",
            what.to_owned(),
        ));
    }
    // Those that some projection has.
    let mut used: Vec<Bits> = settings.possible();
    used.retain(|bits| report.layers.iter().any(|layer| layer.bits.0 == *bits));
    let names: Vec<&str> = used.iter().map(|bits| bits.name()).collect();
    // 2- and 4-bit, or 2-, 3- and 4-bit.
    let widths = match names.split_last() {
        Some((last, [])) => format!("{last}-bit"),
        Some((last, rest)) => format!("{}- and {last}-bit", rest.join("-, ")),
        None => unreachable!("every projection has bits"),
    };
    let pairs = match used.iter().any(|bits| bits.dims() > 1) {
        true => " (v: an index for two weights)",
        false => "",
    };
    let table = i64::from(settings.table_bits);
    let mut card = format!(
        "---\npipeline_tag: text-generation\ntags: [russet, palettized]\n---\n\n# Palettized package\n\n\
         A checkpoint whose projections were replaced by {widths} indices into tables{pairs} and whose embedding has {table} bits. \
         Russet uses it in place; what each tensor is stands under `quantization_config` in `config.json`.\n\n| | |\n|---|---|\n",
    );
    for (name, value) in rows {
        card += &format!("| {name} | {value} |\n");
    }
    card + "\nSettings, inputs and hashes stand in `manifest.json`, the bits of each projection and what other sizes would have\n\
         cost in `palettize.json`:\n\n![bits a weight against the predicted rise of the loss](trade-off.svg)\n"
}

/// Sizes against what they cost, the package's own marked.
pub(crate) fn curve(report: &Report) -> String {
    let (width, height, left, right, top, bottom) = (640.0, 360.0, 70.0, 20.0, 40.0, 50.0);
    let points = &report.curve;
    let ends = |values: &dyn Fn(&crate::TradeOff) -> f64| {
        let all = points.iter().map(values);
        all.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        })
    };
    let ((thin, thick), (low, high)) = (ends(&|point| point.bpw), ends(&|point| point.rise));
    let share = |value: f64, low: f64, high: f64| match high > low {
        true => (value - low) / (high - low),
        false => 0.5,
    };
    let x = |bpw| left + (width - left - right) * share(bpw, thin, thick);
    let y = |rise| height - bottom - (height - top - bottom) * share(rise, low, high);
    let line: Vec<String> = points
        .iter()
        .map(|point| format!("{:.1},{:.1}", x(point.bpw), y(point.rise)))
        .collect();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"{left}\" y=\"22\">rise of the loss over 4 bits everywhere (nats a token, summed over projections) by bits a weight</text>\n\
         <polyline points=\"{}\" fill=\"none\" stroke=\"#b7410e\" stroke-width=\"2\"/>\n",
        line.join(" ")
    );
    for tick in 0..=4u32 {
        let part = f64::from(tick) / 4.0;
        let (bpw, rise) = (thin + part * (thick - thin), low + part * (high - low));
        svg += &format!(
            "<line x1=\"{left}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/>\n\
             <text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">{rise:.3}</text>\n\
             <text x=\"{4:.1}\" y=\"{5}\" text-anchor=\"middle\">{bpw:.2}</text>\n",
            width - right,
            y(rise),
            left - 8.0,
            y(rise) + 4.0,
            x(bpw),
            height - bottom + 20.0,
        );
    }
    // The nearest point of the curve: the package lies on it, up to a step.
    let nearest = points.iter().min_by(|a, b| {
        (a.bpw - report.bpw)
            .abs()
            .total_cmp(&(b.bpw - report.bpw).abs())
    });
    if let Some(point) = nearest {
        svg += &format!(
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\" fill=\"#b7410e\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.3}</text>\n",
            x(point.bpw),
            y(point.rise),
            x(point.bpw).clamp(left + 20.0, width - right - 20.0),
            y(point.rise) - 10.0,
            report.bpw
        );
    }
    svg + "</svg>\n"
}
