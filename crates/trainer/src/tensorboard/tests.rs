use super::*;
use run::{EvaluationSplit, SplitMetrics};

fn epoch(epoch: u32) -> EpochMetrics {
    EpochMetrics {
        epoch,
        train_loss: 2.0,
        train_accuracy: 0.25,
        evaluated: SplitMetrics {
            split: EvaluationSplit::Validation,
            loss: 1.5,
            accuracy: 0.5,
            model_ema_loss: None,
            model_ema_accuracy: None,
            tta_accuracy: Some(0.75),
        },
        learning_rate: 0.1,
        seconds: 8.0,
        images_per_second: 64.0,
        weights_sha256: Some("00".to_owned()),
        stopped_early: true,
    }
}

fn step_scalars(steps: u64) -> Scalars {
    Scalars::new(
        1.0,
        steps,
        [("step/train_loss".to_owned(), 1.0)].into_iter(),
    )
}

/// Epochs of 40 steps.
const STEPS: usize = 40;

/// The steps of scalars, and whether they are an epoch's.
fn steps(scalars: &[Scalars]) -> Vec<(u64, bool)> {
    let scalars = scalars.iter();
    scalars
        .map(|scalars| (scalars.step, scalars.begin_with(EPOCH)))
        .collect()
}

#[test]
fn a_resumed_run_has_every_point_once() {
    // Killed in the third epoch.
    let [first, second] = [1, 2].map(|number| epoch_scalars(&epoch(number), STEPS).unwrap());
    let mut written: Vec<_> = [32, 40, 72, 80, 112].map(step_scalars).into();
    written.insert(2, first);
    written.insert(5, second);
    let history = [epoch(1), epoch(2)];
    for (epochs, step, expected) in [
        (
            2,
            35,
            &[
                (32, false),
                (40, false),
                (40, true),
                (72, false),
                (80, false),
                (80, true),
                (112, false),
            ][..],
        ),
        (
            2,
            31,
            &[
                (32, false),
                (40, false),
                (40, true),
                (72, false),
                (80, false),
                (80, true),
            ],
        ),
        // Before the evaluation.
        (
            1,
            40,
            &[
                (32, false),
                (40, false),
                (40, true),
                (72, false),
                (80, false),
            ],
        ),
        (1, 31, &[(32, false), (40, false), (40, true)]),
        (0, 0, &[]),
    ] {
        let position = Position {
            step,
            ..Position::start_of(epochs)
        };
        let history = &history[..epochs as usize];
        let found = continued(written.clone(), position, history, STEPS).unwrap();
        assert_eq!(steps(&found), expected, "{position:?}");
        assert!(found.iter().all(|scalars| written.contains(scalars)));
    }
    // Trained without `--tensorboard` until now, and in the second epoch.
    let position = Position::start_of(2);
    let added = continued(Vec::new(), position, &history, STEPS).unwrap();
    assert_eq!(steps(&added), [(40, true), (80, true)]);
    let added = continued(written[..3].to_vec(), position, &history, STEPS).unwrap();
    assert_eq!(
        steps(&added),
        [(32, false), (40, false), (40, true), (80, true)]
    );
}

#[test]
fn what_a_crash_left_of_a_record_is_not_read() {
    let all = [epoch_scalars(&epoch(1), STEPS).unwrap(), step_scalars(72)];
    let records = all.each_ref().map(event_file::encode);
    let file = [&event_file::beginning(1.0), &records[0], &records[1]]
        .map(Vec::as_slice)
        .concat();
    assert_eq!(event_file::decode(&file), (all.to_vec(), 0));
    let last = file.len() - records[1].len();
    for end in 0..file.len() {
        let (found, _) = event_file::decode(&file[..end]);
        assert_eq!(found, all[..usize::from(end >= last)], "{end}");
    }
    // One bit, and everything from there on, which after a power failure may be zeros.
    let expected = (all[..1].to_vec(), records[1].len());
    for place in last..file.len() {
        let mut damaged = file.clone();
        damaged[place] ^= 1;
        assert_eq!(event_file::decode(&damaged), expected, "{place}");
        damaged[place..].fill(0);
        // The checksum may end with zeros.
        if damaged != file {
            assert_eq!(event_file::decode(&damaged), expected, "{place}");
        }
    }
}
