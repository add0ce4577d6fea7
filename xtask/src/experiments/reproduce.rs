//! `cargo xtask reproduce`: the data, both networks and the report, in one command.

use crate::experiments::{compare, trainer};
use crate::fetch;
use run::cli::Exit;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

/// What is asked of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show that everything works, in minutes: a small part of the synthetic set, few epochs, no download.
    #[arg(long)]
    quick: bool,

    /// The seeds; every network is trained with each [default: 0,1,2, and 0,1 with --quick].
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    seeds: Option<Vec<u64>>,

    /// The data folder.
    #[arg(long, value_name = "DIR", default_value = "data")]
    data_dir: PathBuf,

    /// The device that computes: auto, cpu, cuda or cuda:N [default: auto].
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,

    /// Runs at a time; they share the processor's cores.
    #[arg(long, value_name = "N", default_value = "1")]
    jobs: NonZeroUsize,

    /// The folder for the runs, report.md and report.html [default: runs/reproduce, and runs/reproduce-quick with
    /// --quick].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    #[command(flatten)]
    trainer: trainer::Args,
}

/// What `--quick` does: of what was tried in as much time, this learnt the most.
const QUICK_RECIPE: &str = "sprint";
const QUICK_EPOCHS: u32 = 4;
const QUICK_IMAGES: usize = 400;
const QUICK_FLAGS: [&str; 8] = [
    "--limit-test",
    "250",
    "--batch-size",
    "20",
    "--lr",
    "0.003",
    "--lr-warmup-epochs",
    "1",
];

/// Does everything that is not done yet, and gives the exit code.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    let models = ["alexnet", "small-alexnet"].map(str::to_owned).to_vec();
    let mut comparison = compare::Args {
        models,
        seeds: args.seeds.clone().unwrap_or_else(|| {
            if args.quick {
                vec![0, 1]
            } else {
                vec![0, 1, 2]
            }
        }),
        recipe: vec![
            if args.quick {
                QUICK_RECIPE
            } else {
                "reference"
            }
            .to_owned(),
        ],
        epochs: None,
        dataset: None,
        data_dir: Some(args.data_dir.clone()),
        limit_train: None,
        device: args.device.clone(),
        jobs: args.jobs,
        out: args.out.clone().unwrap_or_else(|| {
            PathBuf::from(if args.quick {
                "runs/reproduce-quick"
            } else {
                "runs/reproduce"
            })
        }),
        report_only: false,
        dry_run: false,
        trainer: args.trainer.clone(),
        flags: Vec::new(),
    };
    if args.quick {
        comparison.epochs = NonZeroU32::new(QUICK_EPOCHS);
        comparison.dataset = Some("synthetic".to_owned());
        comparison.limit_train = NonZeroUsize::new(QUICK_IMAGES);
        comparison.flags = QUICK_FLAGS.map(str::to_owned).to_vec();
    } else {
        fetch::run(&fetch::Args::into(args.data_dir.clone()))?;
    }
    compare::run(&comparison)
}
