//! What the trainer says to bad input: one sentence, the right exit code, nothing lost or left behind.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in what the tests share.

use end_to_end::{SHORT, program, refused, short_run};
use models::Architecture;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn trainer(runs: &Path) -> assert_cmd::Command {
    let mut command = program("trainer");
    command.args(SHORT).arg("--run-dir").arg(runs);
    command
}

fn is_empty(folder: &Path) -> bool {
    !folder.exists() || fs::read_dir(folder).unwrap().count() == 0
}

#[test]
fn wrong_flags_are_usage_errors() {
    let runs = tempfile::tempdir().unwrap();
    let runs = runs.path();
    for (flag, value, part) in [
        ("--threads", "0", "--threads"),
        ("--threads", "100000", "expected at most 1024"),
        ("--batch-size", "0", "--batch-size"),
        (
            "--batch-size",
            "13",
            "batch size 13 is larger than the training set of 12 images",
        ),
        ("--epochs", "0", "expected an integer of at least 1"),
        ("--epochs", "99999999999", "the number is too large"),
        (
            "--overfit-batches",
            "3",
            "--overfit-batches 3: there are only 12 images",
        ),
        ("--std", "1e300,1,1", "1e300 is out of range"),
        ("--lr", "-0.1", "--lr"),
        ("--lr", "nan", "--lr"),
        ("--lr", "much", "--lr"),
        ("--momentum", "1", "--momentum"),
        ("--weight-decay", "-1", "--weight-decay"),
        ("--dropout", "1", "--dropout"),
        ("--dropout", "0.99999999", "--dropout"),
        ("--dropout-epochs", "some", "--dropout-epochs"),
        ("--augment", "heavy", "--augment"),
        ("--model", "vgg", "--model"),
        ("--recipe", "none", "--recipe"),
        ("--device", "gpu", "--device"),
        ("--device", "cuda", "--device cuda"),
        ("--device", "cuda:1", "--device cuda:1"),
        ("--precision", "tf32", "--precision tf32"),
        ("--precision", "half", "--precision"),
        ("--limit-train", "0", "--limit-train"),
        ("--limit-train", "2000000", "--limit-train 2000000"),
        ("--checkpoint-minutes", "-1", "--checkpoint-minutes"),
        ("--name", "../elsewhere", "--name"),
        ("--resume", "none", "no run `none`"),
        ("--config", "none.toml", "none.toml"),
        ("--seed", "-1", "--seed"),
    ] {
        let mut command = program("trainer");
        command.arg("--run-dir").arg(runs);
        for pair in SHORT.chunks(2).filter(|pair| pair[0] != flag) {
            command.args(pair);
        }
        refused(command.arg(format!("{flag}={value}")), 2, &[part]);
        assert!(is_empty(runs), "{flag} {value} left something behind");
    }
    refused(
        program("trainer").args(["--epochs", "1"]),
        2,
        &["--model", "small-alexnet"],
    );
    #[cfg(unix)]
    for flag in ["--data-dir", "--init", "--run-dir"] {
        use std::os::unix::ffi::OsStrExt;
        for (name, part) in [(&b"d\xff"[..], "Unicode"), (b"d\x07", "control")] {
            let name = std::ffi::OsStr::from_bytes(name);
            let mut command = program("trainer");
            command.current_dir(runs).args(SHORT).arg(flag).arg(name);
            refused(&mut command, 2, &[flag, part]);
            assert!(is_empty(runs), "{flag} left something behind");
        }
    }
}

#[test]
fn what_is_named_and_is_not_there_is_a_usage_error() {
    let folder = tempfile::tempdir().unwrap();
    let refused_in = |name: &str, arguments: &str| {
        let mut command = program(name);
        command.current_dir(&folder);
        refused(command.args(arguments.split(' ')), 2, &["none"]);
        assert!(is_empty(folder.path()), "{arguments} left something behind");
    };
    for arguments in [
        "--model lenet --dataset ./none",
        "--model lenet --dataset none",
        "--model lenet --init none --dataset synthetic",
        "--config none",
        "--resume none",
        "eval --checkpoint none",
        "eval --checkpoint none --dataset ./none",
        "predict --checkpoint none picture.png",
        "report none",
    ] {
        refused_in("trainer", arguments);
    }
    for arguments in ["verify none", "fetch-data --from-file none"] {
        refused_in("xtask", arguments);
    }
}

#[test]
fn an_instruction_set_that_is_not_there_is_not_replaced() {
    let runs = tempfile::tempdir().unwrap();
    for name in ["avx1024", "neon, scalar"] {
        let mut command = trainer(runs.path());
        refused(
            command.env("KERNELS_ISA", name),
            2,
            &["KERNELS_ISA", name, "this machine has ", "scalar"],
        );
        assert!(is_empty(runs.path()));
    }
}

#[test]
fn wrong_settings_files_are_usage_errors() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    for (text, parts) in [
        ("colour = 1", ["line 1", "unknown key"]),
        (
            "model = \"small-alexnet\"\nlr = -0.1",
            ["line 2", "at least 0"],
        ),
        (
            "batch_size = 0",
            ["line 1", "expected an integer of at least 1"],
        ),
        ("lr = \"high\"", ["line 1", "expected a number"]),
        ("std = 1", ["line 1", "expected an array"]),
        ("epochs = \"ten\"", ["line 1", "string \"ten\""]),
        ("std = [0.2, 0.0, 0.2]", ["line 1", "above 0"]),
        ("= 3", ["line 1", "settings.toml"]),
        (
            "precision = \"tf32\"",
            ["--precision tf32", "settings.toml"],
        ),
    ] {
        fs::write(&file, text).unwrap();
        refused(trainer(folder.path()).arg("--config").arg(&file), 2, &parts);
    }
    fs::write(&file, [0xff, 0xfe]).unwrap();
    refused(
        trainer(folder.path()).arg("--config").arg(&file),
        2,
        &["settings.toml", "not a text in UTF-8"],
    );
}

#[test]
fn missing_and_damaged_data_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let runs = folder.path().join("runs");
    let train = |data: &Path| {
        let mut command = program("trainer");
        command
            .args(["--model", "small-alexnet"])
            .arg("--data-dir")
            .arg(data)
            .arg("--run-dir")
            .arg(&runs);
        command
    };
    let hint = "cargo xtask fetch-data --data-dir";
    refused(
        &mut train(&data),
        1,
        &["cifar-10-batches-bin", hint, "does not exist"],
    );
    fs::write(folder.path().join("file"), "").unwrap();
    refused(
        &mut train(&folder.path().join("file")),
        1,
        &["is not a folder", hint],
    );

    let set = data.join(datasets::cifar10::FOLDER);
    fs::create_dir_all(&set).unwrap();
    refused(&mut train(&data), 1, &["data_batch_1.bin", "is missing"]);
    let parent = format!("--data-dir {}", data.display());
    refused(
        &mut train(&set),
        1,
        &["give the folder that contains it", &parent],
    );
    let good = vec![0; datasets::cifar10::FILE_BYTES];
    for name in datasets::cifar10::TRAINING_FILES
        .iter()
        .chain([&datasets::cifar10::TEST_FILE])
    {
        fs::write(set.join(name), &good).unwrap();
    }
    let file = set.join("test_batch.bin");
    for length in [0, 1, datasets::cifar10::FILE_BYTES - 1] {
        fs::write(&file, &good[..length]).unwrap();
        refused(
            &mut train(&data),
            1,
            &["test_batch.bin", &format!("has {length} bytes"), "30730000"],
        );
    }
    fs::write(&file, [&good[..], &[0]].concat()).unwrap();
    refused(
        &mut train(&data),
        1,
        &["test_batch.bin", "has 30730001 bytes"],
    );
    let mut bad = good.clone();
    bad[0] = 10;
    fs::write(&file, &bad).unwrap();
    refused(&mut train(&data), 1, &["test_batch.bin", "label 10"]);
    fs::write(&file, &good).unwrap();
    refused(
        train(&data).args(["--limit-train", "50001"]),
        2,
        &["--limit-train 50001", "50000"],
    );
    assert!(is_empty(&runs));
}

/// A file of weights for SmallAlexNet, with what is wrong about it.
struct Weights {
    tensors: Vec<(String, Vec<usize>, Vec<u8>)>,
    metadata: HashMap<String, String>,
}

impl Weights {
    fn new(architecture: Architecture) -> Self {
        let parameters = architecture.parameters().into_iter();
        let tensors = parameters.map(|parameter| {
            let bytes = vec![0; 4 * parameter.shape.iter().product::<usize>()];
            (parameter.name, parameter.shape, bytes)
        });
        let metadata = [("format_version", "1"), ("model", architecture.name)];
        Self {
            tensors: tensors.collect(),
            metadata: metadata
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, shape, bytes)| {
            (
                name.as_str(),
                TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
            )
        });
        safetensors::serialize(views, Some(self.metadata.clone())).unwrap()
    }

    fn write(&self, folder: &TempDir) -> PathBuf {
        let path = folder.path().join("weights.safetensors");
        fs::write(&path, self.bytes()).unwrap();
        path
    }
}

fn eval(checkpoint: &Path) -> assert_cmd::Command {
    let mut command = program("trainer");
    command
        .args([
            "eval",
            "--dataset",
            "synthetic",
            "--limit-test",
            "10",
            "--checkpoint",
        ])
        .arg(checkpoint);
    command
}

#[test]
fn damaged_checkpoints_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let small = || Weights::new("small-alexnet".parse().unwrap());
    eval(&small().write(&folder)).assert().success();

    let mut nan = small();
    nan.tensors[4].2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    refused(
        &mut eval(&nan.write(&folder)),
        1,
        &["weights.safetensors", "`conv_layer3.0.weight`", "NaN"],
    );
    let mut infinite = small();
    infinite.tensors[15].2[36..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    refused(
        &mut eval(&infinite.write(&folder)),
        1,
        &["`fc_layer1.6.bias`", "inf"],
    );
    let mut missing = small();
    missing.tensors.remove(3);
    refused(
        &mut eval(&missing.write(&folder)),
        1,
        &["`conv_layer2.0.bias` is missing"],
    );
    let mut extra = small();
    extra
        .tensors
        .push(("conv_layer9.0.bias".to_owned(), vec![1], vec![0; 4]));
    refused(
        &mut eval(&extra.write(&folder)),
        1,
        &["`conv_layer9.0.bias` is not a parameter of small-alexnet"],
    );
    let mut misshapen = small();
    misshapen.tensors[0].1 = vec![64, 7, 7, 3];
    refused(
        &mut eval(&misshapen.write(&folder)),
        1,
        &["`conv_layer1.0.weight` has shape [64, 7, 7, 3]"],
    );
    let mut future = small();
    future
        .metadata
        .insert("format_version".to_owned(), "3".to_owned());
    refused(
        &mut eval(&future.write(&folder)),
        1,
        &["format version 3", "later version"],
    );

    let path = small().write(&folder);
    refused(
        eval(&path).args(["--model", "alexnet"]),
        2,
        &["weights of small-alexnet, not of alexnet"],
    );
    let mut bare = small();
    bare.metadata.clear();
    let bare = bare.write(&folder);
    refused(&mut eval(&bare), 2, &["name the network with --model"]);
    eval(&bare)
        .args(["--model", "small-alexnet"])
        .assert()
        .success();
    refused(
        eval(&bare).args(["--model", "alexnet"]),
        1,
        &["does not fit the network", "shape"],
    );

    let whole = small().bytes();
    let path = folder.path().join("cut.safetensors");
    for length in [0, 1, 7, 8, 9, 500, 2000, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        refused(
            &mut eval(&path),
            1,
            &["cut.safetensors", "neither a complete safetensors file"],
        );
    }
    refused(&mut eval(folder.path()), 2, &["cannot read"]);
    refused(
        trainer(&folder.path().join("runs"))
            .arg("--init")
            .arg(&path),
        1,
        &["cut.safetensors"],
    );
    assert!(is_empty(&folder.path().join("runs")));
}

#[test]
fn a_run_is_resumed_only_as_what_it_is() {
    let runs = tempfile::tempdir().unwrap();
    short_run(runs.path(), "a")
        .args(["--epochs", "1"])
        .assert()
        .success();
    let run = runs.path().join("a");
    let resume = || {
        let mut command = program("trainer");
        command.arg("--resume").arg(&run).args(["--epochs", "2"]);
        command
    };
    refused(
        resume().args(["--model", "alexnet"]),
        2,
        &["small-alexnet", "alexnet"],
    );
    refused(resume().args(["--seed", "3"]), 2, &["seed = 0"]);
    refused(resume().args(["--batch-size", "3"]), 2, &["batch_size = 6"]);
    refused(resume().args(["--name", "b"]), 2, &["--name"]);
    refused(&mut short_run(runs.path(), "a"), 2, &["exists", "--resume"]);
    refused(
        program("trainer").arg("--resume").arg(runs.path()),
        2,
        &["there is no run"],
    );

    let last = run.join("last.safetensors");
    let whole = fs::read(&last).unwrap();
    let momentum = run.join("momentum-1-0.safetensors");
    for length in [0, 100, whole.len() - 1] {
        fs::write(&last, &whole[..length]).unwrap();
        refused(
            &mut resume(),
            1,
            &["last.safetensors", "neither a complete safetensors file"],
        );
    }
    fs::copy(run.join("best.safetensors"), &last).unwrap();
    refused(
        &mut resume(),
        1,
        &["last.safetensors", "contains weights alone"],
    );
    fs::write(&last, Weights::new("alexnet".parse().unwrap()).bytes()).unwrap();
    refused(
        &mut resume(),
        1,
        &[
            "last.safetensors",
            "weights of alexnet, not of small-alexnet",
        ],
    );
    fs::write(&last, &whole).unwrap();
    let buffers = fs::read(&momentum).unwrap();
    fs::write(&momentum, &buffers[..1000]).unwrap();
    refused(&mut resume(), 1, &["momentum-1-0.safetensors"]);
    fs::remove_file(&momentum).unwrap();
    refused(&mut resume(), 1, &["momentum-1-0.safetensors"]);
    fs::write(&momentum, &buffers).unwrap();

    let record = run.join("run.toml");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(
        &record,
        text.replace("limit_train = 12", "limit_train = 11"),
    )
    .unwrap();
    refused(&mut resume(), 1, &["other data"]);
    fs::write(&record, "model = ").unwrap();
    refused(&mut resume(), 2, &["run.toml", "line 1"]);
    let record_with = |from: &str, to: &str| {
        assert!(text.contains(from), "{text}");
        fs::write(&record, text.replace(from, to)).unwrap();
    };
    record_with("model = \"small-alexnet\"\n", "");
    refused(&mut resume(), 2, &["run.toml", "is damaged", "`model`"]);
    record_with("momentum = 0.9", "momentum = 0.1");
    refused(
        &mut resume(),
        1,
        &["momentum = 0.9", "momentum = 0.1", "a new run"],
    );
    fs::write(&record, &text).unwrap();
    // Nothing was lost by all that.
    resume().assert().success();
    let record_of_2 = fs::read_to_string(&record).unwrap();
    fs::write(&record, record_of_2.replace("epochs = 2", "epochs = 1")).unwrap();
    refused(
        program("trainer").arg("--resume").arg(&run),
        2,
        &["epochs = 1", "has trained for 2 epochs"],
    );
    fs::write(&record, &record_of_2).unwrap();
    fs::remove_file(&last).unwrap();
    refused(&mut resume(), 1, &["last.safetensors", "is missing"]);
    // As of a process that was killed: its epochs are in the metrics alone.
    let ends = |line: &&str| !line.starts_with("to_");
    let killed: Vec<_> = record_of_2.lines().filter(ends).collect();
    let killed = killed
        .join("\n")
        .replace("from_epoch = 1", "from_epoch = 0");
    fs::write(&record, killed).unwrap();
    refused(&mut resume(), 1, &["last.safetensors", "is missing"]);
}

/// Changed bytes, and files of another kind or checkpoint, where they look like weights.
#[test]
fn checkpoints_have_the_digest_of_their_tensors() {
    let runs = tempfile::tempdir().unwrap();
    let run = runs.path().join("a");
    short_run(runs.path(), "a")
        .args(["--epochs", "2", "--stop-after", "1"])
        .assert()
        .success();
    let resume = || {
        let mut command = program("trainer");
        command.arg("--resume").arg(&run);
        command
    };
    let [last, best, momentum] = ["last", "best", "momentum-1-0"].map(|name| {
        let path = run.join(name).with_extension("safetensors");
        let bytes = fs::read(&path).unwrap();
        (path, bytes)
    });
    for (path, bytes) in [&last, &best, &momentum] {
        let mut damaged = bytes.clone();
        // The exponent of a value changes by one.
        let middle = bytes.len() / 4 * 2 + 2;
        damaged[middle] ^= 0x80;
        fs::write(path, damaged).unwrap();
        if *path != best.0 {
            let name = path.file_name().unwrap().to_str().unwrap();
            refused(&mut resume(), 1, &[name, "is damaged"]);
        }
        if *path != momentum.0 {
            refused(&mut eval(path), 1, &["is damaged", "SHA-256"]);
        }
        fs::write(path, bytes).unwrap();
    }
    refused(
        &mut eval(&momentum.0),
        2,
        &["momentum buffers, not weights", "use last.safetensors"],
    );
    refused(
        trainer(runs.path()).arg("--init").arg(&momentum.0),
        2,
        &["momentum buffers, not weights"],
    );
    fs::write(&momentum.0, &last.1).unwrap();
    refused(
        &mut resume(),
        1,
        &["momentum-1-0.safetensors", "written with last.safetensors"],
    );
    fs::write(&momentum.0, &momentum.1).unwrap();
    resume().assert().success();
}

#[test]
fn a_diverging_run_stops_and_leaves_no_damaged_checkpoint() {
    let runs = tempfile::tempdir().unwrap();
    let mut command = short_run(runs.path(), "a");
    let output = command
        .args(["--lr", "1e20", "--epochs", "3"])
        .assert()
        .code(1)
        .get_output()
        .clone();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("training diverged") && message.contains("lower learning rate"),
        "{message}"
    );
    for name in ["last.safetensors", "best.safetensors"] {
        assert!(!runs.path().join("a").join(name).exists());
    }
    // Before the learning rate has an effect.
    let mut command = short_run(runs.path(), "b");
    let output = command.args(["--std", "1e-38,1,1"]).assert().code(1);
    let message = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    assert!(
        message.contains("the first step") && !message.contains("learning rate"),
        "{message}"
    );
}

#[test]
fn each_picture_is_classified_or_named() {
    let folder = tempfile::tempdir().unwrap();
    let weights = Weights::new("small-alexnet".parse().unwrap()).write(&folder);
    let predict = |images: &[PathBuf]| {
        let mut command = program("trainer");
        command
            .arg("predict")
            .arg("--checkpoint")
            .arg(&weights)
            .args(images);
        command
    };
    let good = folder.path().join("good.png");
    image::RgbImage::new(50, 40).save(&good).unwrap();
    let jpeg = folder.path().join("good.jpg");
    image::RgbImage::new(1, 1).save(&jpeg).unwrap();
    predict(&[good.clone(), jpeg.clone()]).assert().success();
    let bad = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let whole = fs::read(&good).unwrap();
    let images = [
        bad("text.png", b"no picture"),
        good,
        bad("cut.png", &whole[..whole.len() / 2]),
        bad("empty.jpg", b""),
        folder.path().join("none.png"),
        jpeg,
    ];
    let message = refused(&mut predict(&images), 1, &["not a PNG or JPEG"]);
    // Besides the note about the weights.
    let lines = message.lines().filter(|line| !line.starts_with("note: "));
    let lines: Vec<_> = lines.collect();
    assert_eq!(lines.len(), 4, "{message}");
    for (line, name) in lines
        .iter()
        .zip(["text.png", "cut.png", "empty.jpg", "none.png"])
    {
        assert!(line.starts_with("error: ") && line.contains(name), "{line}");
    }
    let output = predict(&images).output().unwrap().stdout;
    let output = String::from_utf8(output).unwrap();
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines.len(), 2, "{output}");
    assert!(
        lines[0].contains("good.png: ") && lines[1].contains("good.jpg: "),
        "{output}"
    );
    refused(&mut predict(&[]), 2, &["IMAGE"]);
    // A name that looks like two lines.
    #[cfg(unix)]
    {
        let image = bad("a\nerror: b.png", &whole);
        let output = predict(&[image]).output().unwrap().stdout;
        let output = String::from_utf8(output).unwrap();
        assert!(
            output.lines().count() == 1 && output.contains("a\\nerror: b.png"),
            "{output}"
        );
    }
}

#[test]
fn outputs_that_are_not_finite_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let mut weights = Weights::new("small-alexnet".parse().unwrap());
    for (_, _, bytes) in &mut weights.tensors {
        for value in bytes.as_chunks_mut().0 {
            *value = 1e30_f32.to_le_bytes();
        }
    }
    let weights = weights.write(&folder);
    let picture = folder.path().join("white.png");
    image::RgbImage::from_pixel(32, 32, image::Rgb([255; 3]))
        .save(&picture)
        .unwrap();
    let mut predict = program("trainer");
    predict
        .arg("predict")
        .arg("--checkpoint")
        .arg(&weights)
        .arg(&picture);
    refused(&mut predict, 1, &["white.png", "infinite or NaN"]);
    assert!(predict.output().unwrap().stdout.is_empty());
    for flags in [&["--json"][..], &["--tta"], &[]] {
        let mut eval = eval(&weights);
        eval.args(flags);
        refused(
            &mut eval,
            1,
            &["weights.safetensors", "infinite or NaN for 10 of 10 images"],
        );
        assert!(eval.output().unwrap().stdout.is_empty());
    }
}

#[test]
fn weights_from_elsewhere_are_taken_with_notes() {
    let folder = tempfile::tempdir().unwrap();
    let mut ddp = Weights::new("small-alexnet".parse().unwrap());
    for (name, _, _) in &mut ddp.tensors {
        name.insert_str(0, "module._orig_mod.");
    }
    ddp.metadata = [("model".to_owned(), "AlexNet-CIFAR".to_owned())].into();
    let weights = ddp.write(&folder);
    let picture = folder.path().join("picture.png");
    image::RgbImage::new(32, 32).save(&picture).unwrap();
    let mut predict = program("trainer");
    predict
        .arg("predict")
        .arg(&picture)
        .arg("--checkpoint")
        .arg(&weights)
        .args(["--model", "small-alexnet"]);
    let mut evaluate = eval(&weights);
    evaluate.args(["--model", "small-alexnet"]);
    let mut train = trainer(folder.path());
    train.args(["--epochs", "1", "--init"]).arg(&weights);
    for mut command in [evaluate, predict, train] {
        let notes = |command: &mut assert_cmd::Command| {
            let output = command.assert().success().get_output().clone();
            String::from_utf8(output.stderr).unwrap()
        };
        let found = notes(&mut command);
        for part in [
            "`module._orig_mod.`",
            "`AlexNet-CIFAR`",
            "mean 0.485,0.456,0.406 and std 0.229,0.224,0.225",
        ] {
            assert_eq!(found.matches(part).count(), 1, "{found}");
        }
        let found = notes(command.args(["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"]));
        assert!(!found.contains("does not say"), "{found}");
    }
    for (flag, value) in [
        ("--mean", "0,nan,0"),
        ("--mean", "0.5"),
        ("--std", "1,0,1"),
        ("--std", "1,1e-50,1"),
    ] {
        refused(eval(&weights).arg(format!("{flag}={value}")), 2, &[flag]);
    }
    refused(&mut eval(&weights), 2, &["`AlexNet-CIFAR`", "--model"]);
    let output = eval(&weights).args(["--model", "small-alexnet"]).output();
    let notes = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(
        notes.contains("the classes of the synthetic set"),
        "{notes}"
    );
}

/// Weights that are used with another normalisation than their own have other results.
#[test]
fn mean_and_std_replace_those_of_the_file() {
    let runs = tempfile::tempdir().unwrap();
    short_run(runs.path(), "a")
        .args(["--epochs", "1", "--mean", "0.5,0.5,0.5"])
        .assert()
        .success();
    let weights = runs.path().join("a").join("last.safetensors");
    let eval = |flags: &[&str]| {
        let output = eval(&weights).arg("--json").args(flags).output().unwrap();
        assert!(output.status.success());
        (output.stdout, String::from_utf8(output.stderr).unwrap())
    };
    let (own, notes) = eval(&[]);
    assert_eq!(notes, "");
    assert_eq!(eval(&["--mean", "0.5,0.5,0.5"]), (own.clone(), notes));
    let (other, notes) = eval(&["--mean", "0,0,0"]);
    assert_ne!(other, own);
    assert!(
        notes.contains("was trained with mean 0.5,0.5,0.5"),
        "{notes}"
    );
    // Training from these weights notes the difference as well.
    let output = trainer(runs.path())
        .args(["--epochs", "1", "--init"])
        .arg(&weights)
        .output()
        .unwrap();
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(
        notes.contains("was trained with mean 0.5,0.5,0.5"),
        "{notes}"
    );
}
