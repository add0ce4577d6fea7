//! From resolved settings to data and training.

use crate::backend::Backend;
use crate::data::{Data, Limits, Pictures};
use crate::memory::MIB;
use crate::settings::Resolved;
use crate::weights;
use anyhow::bail;
use datasets::Split;
use engine::{Checkpoints, Inputs, ProcessGroup, Training, TrainingMemory, TrainingSetup, Weights};
use models::{Network, initial_parameters};
use run::cli::{self, UsageError};
use run::{Choices, MadeBy, Record, Session, file, metrics};
use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What training needs: the settings of a run, its images, and what it computes with.
pub(crate) struct Setup {
    pub(crate) resolved: Resolved,
    pub(crate) data: Data,
    pub(crate) backend: Backend,
    /// Those that train the network together, if there are several.
    pub(crate) process_group: Option<Arc<dyn ProcessGroup>>,
    /// The weights of `--init`, until training starts from them.
    init: Option<Weights>,
}

impl Setup {
    /// Opens the device and loads the images. What can be refused without them is refused before.
    ///
    /// # Errors
    /// Also where a training step does not fit into memory.
    pub(crate) fn new(
        resolved: Resolved,
        process_group: Option<Arc<dyn ProcessGroup>>,
        is_resumed: bool,
        show_bar: bool,
        stop: &AtomicBool,
    ) -> anyhow::Result<Self> {
        let backend = Backend::new(&resolved)?;
        let processes = process_group.as_ref().map_or(1, |group| group.size());
        let classes = resolved.dataset.class_names()?.len();
        let resolved = Resolved {
            architecture: resolved.architecture.with_classes(classes),
            ..resolved
        };
        check_memory(&resolved, &backend, processes, is_resumed)?;
        let init = match &resolved.settings.init {
            Some(path) if !is_resumed => Some(weights::read(path, Some(resolved.architecture))?),
            _ => None,
        };
        let run = &resolved.settings;
        let limits = Limits {
            train: run.limit_train,
            test: run.limit_test,
            validation: run.validation.map(|images| (images, run.seed)),
            overfit: run.overfit_batches,
            batch_size: Some(run.batch_size),
            ..Limits::default()
        };
        let data = load(&resolved, limits, show_bar, Some(stop))?;
        // Again, beside the images.
        check_memory(&resolved, &backend, processes, is_resumed)?;
        Ok(Self {
            resolved: resolved.with_channels(&data.all_training)?,
            data,
            backend,
            process_group,
            init,
        })
    }

    /// Checks that the disk has space for the files of a run in `folder`, which may not exist yet. A run that is
    /// resumed has its files.
    pub(crate) fn check_disk(&self, folder: &Path, resumed: bool) -> anyhow::Result<()> {
        let ema = u64::from(self.resolved.settings.model_ema_decay.get() > 0.0);
        // At most: the best weights, the latest ones and their momentum buffers, and new files of the last two beside
        // them; an old and a new EMA. A resumed run has the old ones.
        let copies = match resumed {
            true => 2 + ema,
            false => 5 + 2 * ema,
        };
        let parameters = self.resolved.architecture.parameter_count() as u64;
        // The logits and the label of each image.
        let classes = self.resolved.architecture.num_classes as u64;
        let predictions = 2 * (24 + 4 * classes) * self.data.test.len() as u64;
        let needed = copies * 4 * parameters + predictions + OTHER_FILES;
        let remedy = match resumed {
            true => "free some",
            false => "free some, or choose another --run-dir",
        };
        check_space(folder, needed, remedy)
    }

    /// This setup with the images of one batch, for one epoch.
    pub(crate) fn limited_to_one_batch(mut self) -> anyhow::Result<Self> {
        let batch_size = self.resolved.settings.batch_size.get();
        let first = |split: &Split| split.clone().first(batch_size.min(split.len()));
        self.data.train = first(&self.data.train)?;
        self.data.test = first(&self.data.test)?;
        self.resolved.settings.epochs = NonZeroU32::MIN;
        Ok(self)
    }

    /// Training from the first step.
    pub(crate) fn start(&mut self) -> anyhow::Result<Training> {
        let init = self.init.take();
        let run = &self.resolved.settings;
        let architecture = self.resolved.architecture;
        let device = &self.backend.device;
        let network = match &run.init {
            Some(path) => {
                let mut weights = match init {
                    Some(weights) => weights,
                    None => weights::read(path, Some(architecture))?,
                };
                let (found, wanted) = (weights.architecture.num_classes, architecture.num_classes);
                if found != wanted {
                    cli::note(&format!(
                        "note: `{}` is for {found} classes, and the data have {wanted}: all layers but the last are taken from \
                         it; the last is initialised",
                        path.display()
                    ));
                    weights = weights.with_new_last_layer(wanted, run.weight_init, run.seed)?;
                } else if let Some(inputs) = &weights.inputs
                    && inputs.class_names != self.data.class_names
                {
                    cli::note(&format!(
                        "note: `{}` was trained on as many other classes; all layers are taken from it",
                        path.display()
                    ));
                }
                let is_given = self.resolved.normalisation_is_given();
                weights::note_normalisation(path, &weights, &self.inputs(), is_given);
                weights.into_network(device)?
            }
            None => {
                if run.freeze_features {
                    cli::note(
                        "note: with --freeze-features, but without --init, the convolutional layers keep random weights",
                    );
                }
                let parameters =
                    initial_parameters(architecture, run.weight_init, run.seed, device)?;
                Network::new(architecture, parameters)?
            }
        };
        Ok(Training::new(self.training_setup(), network)?)
    }

    /// Training from the last checkpoint of a run, or from the first step where there is none yet.
    pub(crate) fn resume(&mut self, run: &Path) -> anyhow::Result<Training> {
        let checkpoints = self.checkpoints(run);
        let made_by = Record::read(run)?.made_by;
        let Some(checkpoint) = checkpoints.read_last(self.resolved.architecture)? else {
            check_untrained(run, &made_by)?;
            return self.start();
        };
        let recorded = made_by.data_sha256;
        if recorded != self.data.digest {
            bail!(
                "the run `{}` was made with other data ({} training and {} test images, SHA-256 {recorded}) than those in use \
                 now ({} and {}, {})",
                run.display(),
                made_by.train_images,
                made_by.test_images,
                self.data.train.len(),
                self.data.test.len(),
                self.data.digest
            );
        }
        // The digest does not cover the names of folders.
        let trained = checkpoint.weights.inputs.as_ref();
        let trained = trained.map_or(&self.data.class_names, |inputs| &inputs.class_names);
        if let Some((old, new)) = trained
            .iter()
            .zip(&self.data.class_names)
            .find(|(old, new)| old != new)
        {
            bail!(
                "the run `{}` was made with the class `{old}`, which is `{new}` in the data in use now; rename it back",
                run.display()
            );
        }
        Ok(Training::resume(self.training_setup(), checkpoint)?)
    }

    fn training_setup(&self) -> TrainingSetup {
        TrainingSetup {
            settings: self.resolved.settings.clone(),
            train: self.data.train.clone(),
            test: self.data.test.clone(),
            split: self.data.evaluated,
            device: self.backend.device.clone(),
            arithmetic: self.backend.arithmetic,
            evaluation_batch: self.recorded_evaluation_batch(),
            cudnn_engines: self.recorded_engines(),
            process_group: self.process_group.clone(),
        }
    }

    /// Images per batch of an evaluation on a GPU of the run that is resumed or repeated.
    fn recorded_evaluation_batch(&self) -> Option<NonZeroUsize> {
        self.resolved.choices.as_ref()?.evaluation_batch
    }

    /// The engines of cuDNN of the run that is resumed or repeated.
    fn recorded_engines(&self) -> BTreeMap<String, String> {
        let choices = self.resolved.choices.as_ref();
        choices.map_or_else(BTreeMap::new, |choices| choices.cudnn_engines.clone())
    }

    /// What the run chose for its device. A run that was on a GPU before keeps that also where a CPU does not need it.
    pub(crate) fn choices(&self, training: &Training, is_resumed: bool) -> anyhow::Result<Choices> {
        let recorded = self.recorded_evaluation_batch().filter(|_| is_resumed);
        Ok(Choices {
            precision: self.backend.precision(),
            evaluation_batch: training.evaluation_batch().or(recorded),
            cudnn_engines: match training.cudnn_engines()? {
                Some(engines) => engines,
                None if is_resumed => self.recorded_engines(),
                None => BTreeMap::new(),
            },
        })
    }

    /// The checkpoints in a run's folder.
    pub(crate) fn checkpoints(&self, run: &Path) -> Checkpoints {
        Checkpoints::new(run, self.inputs())
    }

    /// What the weights are trained for.
    fn inputs(&self) -> Inputs {
        let settings = &self.resolved.settings;
        Inputs {
            mean: settings.mean.0,
            std: settings.std.0,
            class_names: self.data.class_names.clone(),
        }
    }
}

/// Checks that a training step on a CPU fits into the memory that is left. A GPU reports an error when it does not.
///
/// # Errors
/// A usage error, with the size of a batch that fits, unless the run is resumed, when its batch size cannot change.
fn check_memory(
    resolved: &Resolved,
    backend: &Backend,
    processes: usize,
    is_resumed: bool,
) -> anyhow::Result<()> {
    let settings = &resolved.settings;
    let has_ema = settings.model_ema_decay.get() > 0.0;
    let precision = backend.arithmetic.precision;
    let (architecture, frozen) = (resolved.architecture, settings.freeze_features);
    let memory = TrainingMemory::new(architecture, has_ema, frozen, precision);
    let batch_size = settings.batch_size.get();
    let needed = memory.bytes(batch_size.div_ceil(processes));
    let available = match backend.device.is_cpu() {
        true => ops::available_memory().unwrap_or(u64::MAX),
        false => u64::MAX,
    };
    if needed <= available {
        return Ok(());
    }
    let problem = format!(
        "training with batches of {} takes about {} MiB of memory, and {} MiB are free",
        cli::count(batch_size, "image"),
        needed.div_ceil(MIB),
        available / MIB
    );
    if is_resumed {
        bail!("{problem}; free some, or resume the run on a machine with more");
    }
    let remedy = match processes * memory.largest_batch(available) {
        0 => "not even a batch of one image fits beside the weights".to_owned(),
        fits => format!("use --batch-size {fits}"),
    };
    Err(UsageError(format!("{problem}; {remedy}")).into())
}

/// These settings with the mean and the standard deviation of the training images, where they are needed.
pub(crate) fn with_channels(resolved: Resolved, show_bar: bool) -> anyhow::Result<Resolved> {
    if !resolved.needs_channels() {
        return Ok(resolved);
    }
    let limits = Limits {
        train: resolved.settings.limit_train,
        ..Limits::default()
    };
    let data = load(&resolved, limits, show_bar, None)?;
    resolved.with_channels(&data.all_training)
}

/// Loads the images of the data set that settings name.
fn load(
    resolved: &Resolved,
    limits: Limits,
    show_bar: bool,
    stop: Option<&AtomicBool>,
) -> anyhow::Result<Data> {
    let run = &resolved.settings;
    let pictures = Pictures {
        skip_unreadable: run.skip_unreadable,
        show_bar,
        stop,
    };
    Data::load(&resolved.dataset, &run.data_dir, limits, pictures)
}

/// Bytes that a run's metrics, curves, log and tables take at most, but for very long runs.
const OTHER_FILES: u64 = 2 << 20;

/// Fails where the checkpoint of a run is missing although the run has trained: it would start again and overwrite its
/// files.
fn check_untrained(folder: &Path, made_by: &MadeBy) -> anyhow::Result<()> {
    let path = folder.join(file::METRICS);
    let epochs = match path.exists() {
        true => metrics::read(&path)?.len(),
        false => 0,
    };
    // A process that was killed has the metrics of an epoch before its checkpoint; on a GPU, of several epochs.
    let is_cpu = |session: &Session| session.machine.device == "cpu";
    let has_epochs = epochs > 1 && made_by.device == "cpu" && made_by.sessions.iter().all(is_cpu);
    if has_epochs || made_by.sessions.iter().any(Session::has_trained) {
        bail!(
            "`{}` is missing, from which the run resumes; put a copy of it there, or start a new run",
            folder.join(file::LAST_WEIGHTS).display()
        );
    }
    Ok(())
}

/// Checks that there is space for `needed` bytes where `path` is or will be, if the file system tells.
fn check_space(path: &Path, needed: u64, remedy: &str) -> anyhow::Result<()> {
    let exists = |path: &&Path| path.exists();
    let existing = path.ancestors().find(exists).unwrap_or(Path::new("."));
    match atomic_file::free_space(existing) {
        Some(free) if free < needed => bail!(
            "the files of the run do not fit on the disk of `{}`: {} MiB are needed, and {} MiB are free; {remedy}",
            path.display(),
            needed.div_ceil(MIB),
            free / MIB
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_found_before_training() {
        let folder = tempfile::tempdir().unwrap();
        let new = folder.path().join("runs/a");
        check_space(&new, 1, "").unwrap();
        let error = check_space(&new, u64::MAX, "free some").unwrap_err();
        let error = error.to_string();
        let start = format!(
            "the files of the run do not fit on the disk of `{}`: ",
            new.display()
        );
        assert!(error.starts_with(&start), "{error}");
    }
}
