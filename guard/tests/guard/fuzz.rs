//! Random damage to logs of real etcds: the reader never panics, always ends, and never asks for more memory than
//! there are bytes. The seed is fixed, so a failure repeats.

use std::io::{self, Read};

use quorate_guard::wal::{Extent, Log, read_records};

use crate::damage::fixtures;
use crate::writer::frames;

const ROUNDS: u32 = 20_000;

/// xorshift64*: good enough to choose bytes, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32).unwrap() % limit.max(1)
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }
}

/// Gives what a disk might: fewer bytes than asked for.
struct Chunks<'a> {
    rest: &'a [u8],
    random: Random,
}

impl Read for Chunks<'_> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let most = self.random.below(700) + 1;
        let most = most.min(target.len());
        self.rest.read(&mut target[..most])
    }
}

/// One to four kinds of damage.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let length = bytes.len();
        let at = random.below(length);
        match random.below(7) {
            0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.below(8)),
            1 => bytes.truncate(at),
            2 => {
                let noise: Vec<_> = (0..random.below(64)).map(|_| random.byte()).collect();
                bytes.splice(at..at, noise);
            }
            3 => bytes.iter_mut().skip(at / 512 * 512).take(512).for_each(|byte| *byte = 0),
            4 => {
                let end = (at + random.below(200)).min(length);
                bytes.drain(at..end);
            }
            5 => {
                // A length: the field that steers the reader.
                let offsets = frames(bytes);
                let frame = offsets[random.below(offsets.len())];
                bytes.iter_mut().skip(frame).take(8).for_each(|byte| *byte = random.byte());
            }
            _ => {
                let copied: Vec<_> = bytes.iter().skip(at).take(random.below(300)).copied().collect();
                let to = random.below(length);
                bytes.splice(to..to, copied);
            }
        }
    }
}

#[test]
fn no_damage_makes_the_reader_panic_run_on_or_take_memory() {
    let logs = fixtures();
    let mut random = Random(0x5eed);
    let (mut ends, mut problems) = (0, 0);
    for round in 0..ROUNDS {
        let mut bytes = logs[random.below(logs.len())].clone();
        mutate(&mut bytes, &mut random);
        bytes.resize(bytes.len() + random.below(2) * 600, 0);
        let size = bytes.len() as u64;
        let (mut log, mut buffer) = (Log::default(), Vec::new());
        let extent = Extent { offset: 0, size, last: round % 2 == 0 };
        let mut source = Chunks { rest: &bytes, random: Random(u64::from(round) + 1) };
        let (reached, end) = read_records(&mut source, extent, &mut log, &mut buffer);
        assert!(reached <= size, "round {round}");
        assert!(buffer.len() as u64 <= size, "round {round}: {} bytes for {size}", buffer.len());
        match end {
            Ok(_) => ends += 1,
            Err(_) => problems += 1,
        }
        // What was read is exactly what stands before the offset.
        let (mut again, good) = (Log::default(), &bytes[..usize::try_from(reached).unwrap()]);
        let extent = Extent { offset: 0, size: reached, last: false };
        let (reread, end) = read_records(&mut { good }, extent, &mut again, &mut buffer);
        assert!(end.is_ok() && reread == reached, "round {round}: {end:?}");
        assert_eq!(again.summary(), log.summary(), "round {round}");
    }
    assert!(ends > ROUNDS / 20 && problems > ROUNDS / 5, "both verdicts are tried: {ends} and {problems}");
}
