//! Figures of the page: radar charts, bars of wins, ties and losses, lines over positions, grids of depth and length.
//!
//! They are drawn where the page is written, as SVG and boxes, since the page has no scripts. Each says in words what it shows, its
//! points say their numbers, and all of it stands in a table too: whoever sees no colours loses nothing.

use std::f64::consts::TAU;

use super::html::escape;

/// Series that a figure tells apart by colour and dashes; more would not be read.
pub(super) const SERIES: usize = 6;

/// Axes that a radar chart has at least, and at most.
pub(super) const AXES: std::ops::RangeInclusive<usize> = 3..=12;

/// A name with a value for each axis; none where it is not known.
pub(super) type Series<'a> = (&'a str, Vec<Option<f64>>);

/// Shares of several series on axes about a middle, 0 to 100; nothing where there are too few axes for an area, or too many.
pub(super) fn radar(what: &str, axes: &[String], series: &[Series]) -> String {
    if !AXES.contains(&axes.len()) || series.is_empty() {
        return String::new();
    }
    let at = |axis: usize, share: f64| {
        let angle = TAU * axis as f64 / axes.len() as f64;
        let far = 120.0 * share.clamp(0.0, 100.0) / 100.0;
        (
            290.0 + far * libm::sin(angle),
            165.0 - far * libm::cos(angle),
        )
    };
    let path = |points: &[(f64, f64)]| {
        let points: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        points.join(" ")
    };
    let mut out = format!(
        "<div class=\"figure\"><svg class=\"radar\" viewBox=\"0 0 580 330\" role=\"img\" aria-label=\"{}\">",
        escape(what)
    );
    for ring in [25.0, 50.0, 75.0, 100.0] {
        let all: Vec<(f64, f64)> = (0..axes.len()).map(|axis| at(axis, ring)).collect();
        out += &format!(
            "<polygon points=\"{}\" fill=\"none\" stroke=\"var(--line)\"/>",
            path(&all)
        );
        let (x, y) = at(0, ring);
        out += &format!(
            "<text class=\"i\" x=\"{:.1}\" y=\"{:.1}\">{ring:.0}</text>",
            x + 3.0,
            y + 10.0
        );
    }
    for (axis, label) in axes.iter().enumerate() {
        let ((x, y), (tx, ty)) = (at(axis, 100.0), at(axis, 100.0));
        out += &format!("<path d=\"M290 165L{x:.1} {y:.1}\" stroke=\"var(--line)\"/>");
        let side = tx - 290.0;
        let anchor = match side {
            side if side > 10.0 => "start",
            side if side < -10.0 => "end",
            _ => "middle",
        };
        let (dx, dy) = (
            if side.abs() > 10.0 {
                6.0 * side.signum()
            } else {
                0.0
            },
            match ty - 165.0 {
                below if below > 60.0 => 14.0,
                above if above < -60.0 => -6.0,
                _ => 4.0,
            },
        );
        out += &format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}<title>{}</title></text>",
            tx + dx,
            ty + dy,
            escape(&cut(label, 24)),
            escape(label)
        );
    }
    for (number, (name, values)) in series.iter().take(SERIES).enumerate() {
        let known: Vec<(usize, f64)> = values
            .iter()
            .enumerate()
            .filter_map(|(axis, value)| Some((axis, (*value)?)))
            .collect();
        let points: Vec<(f64, f64)> = known
            .iter()
            .map(|(axis, value)| at(*axis, *value))
            .collect();
        // An area says that all of it is known.
        let fill = if known.len() == axes.len() { 0.1 } else { 0.0 };
        out += &format!(
            "<polygon class=\"s s{number}\" points=\"{}\" fill-opacity=\"{fill}\"/>",
            path(&points)
        );
        for ((axis, value), (x, y)) in known.iter().zip(&points) {
            out += &format!(
                "<circle class=\"s{number}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\"><title>{}, {}: {value:.1} %</title></circle>",
                escape(name),
                escape(&axes[*axis])
            );
        }
    }
    out += "</svg>";
    out += &legend(series.iter().map(|(name, _)| *name));
    out += "</div>\n";
    out
}

/// What colours and dashes stand for.
fn legend<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut out = "<div class=\"legend\">".to_owned();
    for (number, name) in names.enumerate() {
        out += &match number < SERIES {
            true => format!(
                "<span class=\"key\"><svg viewBox=\"0 0 24 8\" aria-hidden=\"true\"><path class=\"s s{number}\" d=\"M0 4H24\"/></svg> {}</span>",
                escape(name)
            ),
            false => format!(
                "<span class=\"key\">{} <span class=\"i\">(not drawn)</span></span>",
                escape(name)
            ),
        };
    }
    out + "</div>"
}

/// Wins, ties and losses, in per cent, as AFM's figures of preference have them: a bar a pair, wins first.
pub(super) fn outcomes(rows: &[(String, [f64; 3])]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut out = "<div class=\"figure\">".to_owned();
    for (label, shares) in rows {
        out += &format!(
            "<div class=\"pair\"><div>{}</div><div class=\"wtl\">",
            escape(label)
        );
        for (class, word, share) in [
            ("win", "wins", shares[0]),
            ("tie", "ties", shares[1]),
            ("loss", "losses", shares[2]),
        ] {
            if share > 0.0 {
                // Where the number has no room, the pointer finds it, and the table has it.
                let number = if share >= 8.0 {
                    format!("{share:.1}")
                } else {
                    String::new()
                };
                out += &format!(
                    "<span class=\"{class}\" style=\"flex: {share:.3}\" title=\"{word} {share:.1} %\">{number}</span>"
                );
            }
        }
        out += "</div></div>";
    }
    out + "<div class=\"legend\"><span class=\"key\"><span class=\"win box\"></span> wins</span><span class=\"key\"><span class=\"tie box\"></span> \
           ties</span><span class=\"key\"><span class=\"loss box\"></span> losses, in per cent</span></div></div>\n"
}

/// A point of a line: where, how much, and the interval of that.
pub(super) type Point = (f64, f64, Option<[f64; 2]>);

/// Lines over positions, the lower the better.
pub(super) fn lines(what: &str, series: &[(&str, Vec<Point>)]) -> String {
    let points = || series.iter().take(SERIES).flat_map(|(_, points)| points);
    let (mut right, mut low, mut high) = (0.0f64, f64::INFINITY, f64::NEG_INFINITY);
    for (x, y, interval) in points() {
        right = right.max(*x);
        let [below, above] = interval.unwrap_or([*y, *y]);
        (low, high) = (low.min(below), high.max(above));
    }
    let finite = points().all(|(x, y, _)| x.is_finite() && y.is_finite());
    if points().count() < 2 || !(finite && low.is_finite() && high.is_finite()) || right <= 0.0 {
        return String::new();
    }
    let margin = ((high - low) * 0.08).max(high * 0.005);
    let (low, high) = ((low - margin).max(0.0), high + margin);
    let x = |value: f64| 52.0 + 530.0 * value / right;
    let y = |value: f64| 200.0 - 180.0 * (value - low) / (high - low);
    let mut out = format!(
        "<div class=\"figure\"><svg class=\"lines\" viewBox=\"0 0 600 236\" role=\"img\" aria-label=\"{}\">",
        escape(what)
    );
    for part in 0..=4 {
        let value = low + (high - low) * f64::from(part) / 4.0;
        out += &format!(
            "<path d=\"M52 {0:.1}H582\" stroke=\"var(--line)\"/><text x=\"46\" y=\"{1:.1}\" text-anchor=\"end\">{value:.1}</text>",
            y(value),
            y(value) + 4.0
        );
        let place = right * f64::from(part) / 4.0;
        out += &format!(
            "<text x=\"{:.1}\" y=\"218\" text-anchor=\"middle\">{place:.0}</text>",
            x(place)
        );
    }
    out += "<text x=\"317\" y=\"233\" text-anchor=\"middle\">position in the text, tokens</text>";
    for (number, (name, points)) in series.iter().take(SERIES).enumerate() {
        let path: Vec<String> = points
            .iter()
            .map(|(at, value, _)| format!("{:.1},{:.1}", x(*at), y(*value)))
            .collect();
        out += &format!(
            "<polyline class=\"s s{number}\" points=\"{}\" fill=\"none\"/>",
            path.join(" ")
        );
        for (at, value, interval) in points {
            if let Some([below, above]) = interval {
                out += &format!(
                    "<path class=\"whisker s{number}\" d=\"M{0:.1} {1:.1}V{2:.1}\"/>",
                    x(*at),
                    y(*below),
                    y(*above)
                );
            }
            out += &format!(
                "<circle class=\"s{number}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\"><title>{}, at {at:.0}: {value:.3}</title></circle>",
                x(*at),
                y(*value),
                escape(name)
            );
        }
    }
    out += "</svg>";
    out += &legend(series.iter().map(|(name, _)| *name));
    out += "</div>\n";
    out
}

/// Shares by two things, 0 to 1, the deeper the colour the more: a row each of `down`, a column each of `across`.
pub(super) fn grid(
    name: &str,
    corner: &str,
    across: &[String],
    down: &[(String, Vec<Option<f64>>)],
) -> String {
    let mut out = format!(
        "<div class=\"scroll\"><table class=\"grid\"><caption>{}</caption><tr><th>{}</th>",
        escape(name),
        escape(corner)
    );
    for column in across {
        out += &format!("<th class=\"n\">{}</th>", escape(column));
    }
    out += "</tr>";
    for (row, shares) in down {
        out += &format!("<tr><th>{}</th>", escape(row));
        for share in shares {
            out += &match share {
                None => "<td class=\"n\">–</td>".to_owned(),
                Some(share) => format!(
                    "<td class=\"n\" style=\"background: color-mix(in srgb, var(--bar) {:.0}%, transparent)\">{:.0} %</td>",
                    60.0 * share.clamp(0.0, 1.0),
                    100.0 * share
                ),
            };
        }
        out += "</tr>";
    }
    out + "</table></div>\n"
}

fn cut(label: &str, most: usize) -> String {
    match label.char_indices().nth(most) {
        None => label.to_owned(),
        Some((end, _)) => format!("{}…", label[..end].trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_radar_chart_has_its_values_at_their_distance() {
        let axes = ["up", "right", "down", "left"].map(str::to_owned);
        let drawn = radar(
            "r",
            &axes,
            &[("a", vec![Some(100.0), Some(50.0), Some(0.0), Some(150.0)])],
        );
        // The middle is at 290, 165, and 100 is 120 away; beyond 100 is 100.
        for (x, y) in [
            ("290.0", "45.0"),
            ("350.0", "165.0"),
            ("290.0", "165.0"),
            ("170.0", "165.0"),
        ] {
            assert!(
                drawn.contains(&format!("cx=\"{x}\" cy=\"{y}\"")),
                "{x} {y}: {drawn}"
            );
        }
        assert!(drawn.contains("a, right: 50.0 %"));
        // Where something is not known there is no area, and no point for it.
        let drawn = radar(
            "r",
            &axes,
            &[("a", vec![Some(100.0), None, Some(0.0), Some(50.0)])],
        );
        assert!(
            drawn.contains("fill-opacity=\"0\"") && !drawn.contains("a, right"),
            "{drawn}"
        );
        assert_eq!(radar("r", &axes[..2], &[("a", vec![Some(1.0); 2])]), "");
        assert_eq!(radar("r", &axes, &[]), "");
    }

    #[test]
    fn lines_stand_between_their_lowest_and_highest() {
        let series = [(
            "a",
            vec![(0.0, 40.0, None), (100.0, 20.0, Some([18.0, 22.0]))],
        )];
        let drawn = lines("l", &series);
        let heights: Vec<f64> = drawn
            .split("cy=\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
            .collect();
        assert!(heights[0] < heights[1], "{heights:?}");
        assert!(
            heights.iter().all(|y| (20.0..=200.0).contains(y)),
            "{heights:?}"
        );
        assert!(drawn.contains("a, at 100: 20.000"));
        assert_eq!(lines("l", &[("a", vec![(0.0, 1.0, None)])]), "");
        assert_eq!(
            lines("l", &[("a", vec![(0.0, f64::NAN, None), (1.0, 1.0, None)])]),
            ""
        );
    }

    #[test]
    fn names_are_text_in_figures_too() {
        let wicked = "<b>\"x\"";
        let axes = vec![wicked.to_owned(); 3];
        let drawn = [
            radar(wicked, &axes, &[(wicked, vec![Some(1.0); 3])]),
            outcomes(&[(wicked.to_owned(), [50.0, 20.0, 30.0])]),
            lines(
                wicked,
                &[(wicked, vec![(0.0, 1.0, None), (1.0, 2.0, None)])],
            ),
            grid(
                wicked,
                wicked,
                &axes,
                &[(wicked.to_owned(), vec![Some(0.5); 3])],
            ),
        ];
        for drawn in drawn {
            assert!(
                !drawn.is_empty() && !drawn.contains("<b>") && !drawn.contains("\"x\""),
                "{drawn}"
            );
        }
    }
}
