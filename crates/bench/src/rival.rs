//! The same networks and steps in PyTorch.

use anyhow::{Context, bail};
use clap::ValueEnum;
use models::{Architecture, Layer};
use serde::de::DeserializeOwned;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// PyTorch's memory formats of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    /// `[batch, channels, height, width]`.
    Contiguous,
    /// `[batch, height, width, channels]`.
    ChannelsLast,
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

/// The network in PyTorch: Python code that defines `network()`.
fn network(model: Architecture) -> String {
    let layers = model.layers().into_iter().map(|layer| match layer.layer {
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
    });
    let layers = layers.collect::<Vec<_>>().join(", ");
    format!("from torch import nn\n\ndef network():\n    return nn.Sequential({layers})\n\n")
}

/// Runs `script` with these arguments in Python, with `network()` defined, and reads the last line that it prints.
pub(crate) fn ask<T: DeserializeOwned>(
    python: &Path,
    model: Architecture,
    script: &str,
    arguments: &str,
) -> anyhow::Result<T> {
    let mut child = Command::new(python)
        .arg("-")
        .args(arguments.split(' '))
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
    serde_json::from_str(last).context("cannot read the answer of PyTorch")
}
