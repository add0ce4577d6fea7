//! The same networks and steps in PyTorch.

use crate::device::DeviceKind;
use anyhow::{Context, bail};
use models::{Architecture, Layer};
use run::settings::Precision;
use serde::de::DeserializeOwned;
use std::fmt;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// How PyTorch computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Configuration {
    /// Whether images are `[batch, height, width, channels]` in memory, rather than `[batch, channels, height, width]`.
    channels_last: bool,
    /// `Bf16`: under `torch.autocast`.
    pub(crate) precision: Precision,
    /// Whether the network is compiled by `torch.compile`.
    compiled: bool,
}

impl Configuration {
    /// All configurations in these precisions; those that are compiled only where PyTorch can. On a GPU, channels are last.
    pub(crate) fn all(
        precisions: impl Iterator<Item = Precision>,
        device: DeviceKind,
        compiles: bool,
    ) -> impl Iterator<Item = Self> {
        let mut configurations = Vec::new();
        for precision in precisions {
            for channels_last in [false, true] {
                for compiled in [false, true] {
                    let configuration = Self {
                        channels_last,
                        precision,
                        compiled,
                    };
                    let is_wanted = (compiles || !compiled)
                        && (channels_last || device == DeviceKind::Cpu)
                        && !configurations.contains(&configuration);
                    configurations.extend(is_wanted.then_some(configuration));
                }
            }
        }
        configurations.into_iter()
    }

    /// The name of the layout.
    fn layout(self) -> &'static str {
        if self.channels_last {
            "channels-last"
        } else {
            "contiguous"
        }
    }

    /// The arguments of the script.
    pub(crate) fn arguments(self) -> String {
        let compile = if self.compiled { " --compile" } else { "" };
        format!(
            "--layout={} --precision={}{compile}",
            self.layout(),
            self.precision
        )
    }
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let compiled = if self.compiled { " compiled" } else { "" };
        write!(f, "{} {}{compiled}", self.precision, self.layout())
    }
}

/// PyTorch's version, where `python` has it for this device.
pub(crate) fn version(python: &Path, device: DeviceKind) -> anyhow::Result<String> {
    let says = |line: &str| format!("`{}` has no PyTorch: {line}", python.display());
    let script = match device {
        DeviceKind::Cpu => "import torch; print(torch.__version__)",
        DeviceKind::Cuda => "import torch; torch.zeros(1).cuda(); print(torch.__version__)",
    };
    interpret(python, script, says)
}

/// Whether PyTorch can compile networks there, which takes a C++ compiler.
pub(crate) fn compiles(python: &Path) -> anyhow::Result<()> {
    let script = "import torch; torch.compile(lambda x: x + 1)(torch.zeros(8))";
    interpret(python, script, |line| {
        format!("torch.compile fails ({line})")
    })?;
    Ok(())
}

/// What `script` prints. `says` gives the message from the last line of its errors.
fn interpret(
    python: &Path,
    script: &str,
    says: impl FnOnce(&str) -> String,
) -> anyhow::Result<String> {
    let output = Command::new(python)
        .args(["-c", script])
        .output()
        .with_context(|| format!("cannot run `{}`", python.display()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let mut lines = text.lines().rev();
        let last = lines.find(|line| !line.trim().is_empty());
        bail!(says(last.unwrap_or("it says nothing")));
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
