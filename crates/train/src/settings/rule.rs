//! `[optimizer]` and `[schedule]`: which rule makes weights of gradients, and how its rate runs. `kind` names the rule and
//! decides which other keys there are.

use serde::{Deserialize, Serialize};

/// `[optimizer]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum OptimizerSettings {
    /// Adam with decoupled weight decay (arXiv 1711.05101).
    AdamW(AdamWSettings),
    /// AFM's: RMSProp whose updates are limited a block and then smoothed (arXiv 2407.21075).
    AdaStar(AdaStarSettings),
    /// RMSProp with momentum.
    RmsProp(RmsPropSettings),
}

/// `kind = "adamw"`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// λ; a step takes `learning rate · λ` of each decayed weight.
    pub weight_decay: f64,
    /// muP: the width at which the rate of matrices is the schedule's; 0 leaves it the same at any width.
    pub mup_base_width: usize,
}

/// `kind = "adastar"`; the defaults are AFM's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdaStarSettings {
    /// Decay of the mean of updates, not corrected.
    pub beta1: f64,
    /// Decay of the mean of squares, corrected.
    pub beta2: f64,
    /// Added to each squared gradient.
    pub epsilon: f64,
    /// The largest root mean square of a block's update; 0 for no limit.
    pub clip_rms: f64,
    /// λ; a step takes `λ · (learning rate / peak)` of each decayed weight, whatever the peak.
    pub weight_decay: f64,
    /// muP: the width at which the rate of matrices is the schedule's; 0 leaves it the same at any width.
    pub mup_base_width: usize,
}

/// `kind = "rmsprop"`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RmsPropSettings {
    /// Decay of the mean of squares, not corrected.
    pub alpha: f64,
    /// What stays of the last step.
    pub momentum: f64,
    /// Added to the root of the mean of squares.
    pub epsilon: f64,
    /// λ; a step takes `learning rate · λ` of each decayed weight.
    pub weight_decay: f64,
    /// muP: the width at which the rate of matrices is the schedule's; 0 leaves it the same at any width.
    pub mup_base_width: usize,
}

/// `[schedule]`: what follows the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum ScheduleSettings {
    /// Half a cosine from the peak to the final rate.
    Cosine {}, // with braces, or serde lets unknown keys pass
    /// The peak, then a decay over the last share of all steps ("warm-up, stable, decay").
    Wsd(WsdSettings),
    /// The peak to the end.
    Constant {},
}

/// `kind = "wsd"`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WsdSettings {
    /// The share of all steps that the decay takes, rounded up to whole steps.
    pub decay_share: f64,
    /// How it falls.
    pub decay: Decay,
}

/// The shape of a decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// 1 - x.
    Linear,
    /// (1 + cos πx) / 2.
    Cosine,
    /// 1 - √x.
    Sqrt,
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        OptimizerSettings::AdamW(AdamWSettings::default())
    }
}

impl Default for ScheduleSettings {
    fn default() -> Self {
        ScheduleSettings::Cosine {}
    }
}

impl Default for AdamWSettings {
    fn default() -> Self {
        AdamWSettings {
            beta1: 0.9, // As the weight decay.
            beta2: 0.95,
            epsilon: 1e-8,
            // GPT-3 (arXiv 2005.14165) and Llama (arXiv 2302.13971). AFM's 3.16e-4 does not scale with the rate.
            weight_decay: 0.1,
            mup_base_width: 0,
        }
    }
}

impl Default for AdaStarSettings {
    fn default() -> Self {
        AdaStarSettings {
            beta1: 0.95,
            beta2: 0.95,
            epsilon: 1e-30,
            clip_rms: 1.0,
            weight_decay: 3.16e-4,
            mup_base_width: 768,
        }
    }
}

impl Default for RmsPropSettings {
    fn default() -> Self {
        RmsPropSettings {
            alpha: 0.99, // PyTorch's.
            momentum: 0.9,
            epsilon: 1e-8,
            weight_decay: 0.0,
            mup_base_width: 0,
        }
    }
}

impl Default for WsdSettings {
    fn default() -> Self {
        WsdSettings {
            decay_share: 0.2,
            decay: Decay::Sqrt, // The best of those that arXiv 2405.18392 compares.
        }
    }
}

impl OptimizerSettings {
    /// λ.
    pub fn weight_decay(&self) -> f64 {
        match self {
            OptimizerSettings::AdamW(settings) => settings.weight_decay,
            OptimizerSettings::AdaStar(settings) => settings.weight_decay,
            OptimizerSettings::RmsProp(settings) => settings.weight_decay,
        }
    }

    /// The width at which muP's multiplier is 1; 0 for none.
    pub fn mup_base_width(&self) -> usize {
        match self {
            OptimizerSettings::AdamW(settings) => settings.mup_base_width,
            OptimizerSettings::AdaStar(settings) => settings.mup_base_width,
            OptimizerSettings::RmsProp(settings) => settings.mup_base_width,
        }
    }

    /// As a person calls it.
    pub fn name(&self) -> &'static str {
        match self {
            OptimizerSettings::AdamW(_) => "AdamW",
            OptimizerSettings::AdaStar(_) => "AdaStar",
            OptimizerSettings::RmsProp(_) => "RMSProp",
        }
    }
}
