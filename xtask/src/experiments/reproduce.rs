//! `cargo xtask reproduce`: the data, both networks and the report, with one command.

use crate::experiments::compare;
use crate::experiments::flags::{Environment, SettingFlags};
use crate::fetch;
use crate::trainer;
use run::NativePath;
use run::cli::{self, Exit};
use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Options of `reproduce`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run everything in minutes: few images of the synthetic data set, few epochs, no download.
    #[arg(long)]
    quick: bool,

    /// The seeds; every network is trained with each [default: 0,1,2, and 0,1 with --quick].
    #[arg(long, value_name = "SEEDS", value_delimiter = ',')]
    seeds: Option<Vec<u64>>,

    /// Concurrent runs; they divide the cores among them.
    #[arg(long, value_name = "N", default_value = "1")]
    jobs: NonZeroUsize,

    /// The folder for the runs, report.html, report.md and report.svg [default: runs/reproduce, and
    /// runs/reproduce-quick with --quick].
    #[arg(long, value_name = "DIR")]
    out: Option<NativePath>,

    #[command(flatten)]
    trainer: trainer::Args,

    #[command(flatten)]
    settings: SettingFlags<Environment>,
}

/// The settings of `--quick`, by key. Of those tried that take as long, they reach the highest accuracy.
const QUICK: [(&str, &str); 7] = [
    ("dataset", "synthetic"),
    ("limit_train", "400"),
    ("limit_test", "250"),
    ("epochs", "4"),
    ("batch_size", "10"),
    ("lr", "0.003"),
    ("lr_warmup_epochs", "1"),
];

/// Does everything that is not done yet.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    let mut settings = args.settings.clone().into();
    let (recipe, seeds, out) = if args.quick {
        cli::note(
            "Training AlexNet and SmallAlexNet on the synthetic data set: 2 runs of each, 4 epochs of 400 images.\n\
             On two cores it takes two to five minutes. A report that compares the networks follows.",
        );
        for (key, value) in QUICK {
            settings = settings.with(key, value);
        }
        ("sprint", vec![0, 1], "runs/reproduce-quick")
    } else {
        let data = settings.get("data_dir").unwrap_or(OsStr::new("data"));
        fetch::run(&fetch::Args::into(data.to_owned().into()))?;
        ("reference", vec![0, 1, 2], "runs/reproduce")
    };
    compare::run(&compare::Args {
        models: report::post_networks().map(str::to_owned).collect(),
        seeds: args.seeds.clone().unwrap_or(seeds),
        recipe: vec![recipe.to_owned()],
        jobs: args.jobs,
        out: args
            .out
            .clone()
            .unwrap_or_else(|| PathBuf::from(out).into()),
        report_only: false,
        dry_run: false,
        slurm: Default::default(),
        trainer: args.trainer.clone(),
        settings,
        flags: Vec::new(),
    })
}
