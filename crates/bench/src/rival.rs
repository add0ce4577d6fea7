//! The same networks and steps in PyTorch.

use crate::throughput::{Measured, Pass};
use anyhow::{Context, bail};
use models::{Architecture, Layer};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::{Command, Stdio};

/// The script for a processor.
const SCRIPT: &str = include_str!("pytorch.py");

/// How PyTorch lays out images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Layout {
    /// `[batch, channels, height, width]`.
    Contiguous,
    /// `[batch, height, width, channels]`.
    ChannelsLast,
}

impl Layout {
    pub(crate) const ALL: [Self; 2] = [Self::Contiguous, Self::ChannelsLast];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Contiguous => "contiguous",
            Self::ChannelsLast => "channels-last",
        }
    }
}

/// PyTorch's version, where `python` has it.
pub(crate) fn version(python: &Path) -> anyhow::Result<String> {
    let output = Command::new(python)
        .args(["-c", "import torch; print(torch.__version__)"])
        .output()
        .with_context(|| format!("cannot run `{}`", python.display()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.lines().last().unwrap_or("it fails");
        bail!("`{}` has no PyTorch: {last}", python.display());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// One measurement.
pub(crate) fn measure(
    python: &Path,
    layout: Layout,
    (model, pass): (Architecture, Pass),
    (batch_size, threads): (NonZeroUsize, NonZeroUsize),
    seconds: f64,
) -> anyhow::Result<Measured> {
    ask(
        python,
        model,
        SCRIPT,
        &[
            ("--pass", pass.name().to_owned()),
            ("--layout", layout.name().to_owned()),
            ("--batch-size", batch_size.to_string()),
            ("--threads", threads.to_string()),
            ("--seconds", seconds.to_string()),
        ],
    )
}

/// The network in PyTorch: Python code that defines `network()`.
fn network(model: Architecture) -> String {
    let layers: Vec<_> = model
        .layers()
        .into_iter()
        .map(|layer| match layer.layer {
            Layer::Conv2d {
                in_channels,
                out_channels,
                kernel,
                padding,
            } => format!("nn.Conv2d({in_channels}, {out_channels}, {kernel}, padding={padding})"),
            Layer::Relu => "nn.ReLU()".to_owned(),
            Layer::MaxPool2d { kernel, stride } => format!("nn.MaxPool2d({kernel}, {stride})"),
            Layer::AvgPool2d { kernel, stride } => format!("nn.AvgPool2d({kernel}, {stride})"),
            Layer::Dropout => "nn.Dropout(0.5)".to_owned(),
            Layer::Flatten => "nn.Flatten()".to_owned(),
            Layer::Linear {
                in_features,
                out_features,
            } => format!("nn.Linear({in_features}, {out_features})"),
        })
        .collect();
    format!(
        "from torch import nn\n\ndef network():\n    return nn.Sequential({})\n\n",
        layers.join(", ")
    )
}

/// Runs `script` in Python with `network()` defined, and reads the last line that it prints.
pub(crate) fn ask<T: DeserializeOwned>(
    python: &Path,
    model: Architecture,
    script: &str,
    arguments: &[(&str, String)],
) -> anyhow::Result<T> {
    let mut child = Command::new(python)
        .arg("-")
        .args(
            arguments
                .iter()
                .flat_map(|(flag, value)| [*flag, value.as_str()]),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{}`", python.display()))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(network(model).as_bytes())?;
        input.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!(
            "PyTorch failed: {}",
            text.lines().last().unwrap_or("it said nothing")
        );
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).context("PyTorch's answer is not understood")
}
