//! The tree, as far as appending needs it: `tlog_tiles` has the proofs.

pub use tlog_tiles::Hash;
use tlog_tiles::{EMPTY_HASH, HASH_SIZE, Tile, node_hash, record_hash};

/// Tiles hold hashes of every eighth level.
pub const TILE_HEIGHT: u8 = 8;

/// No log has more entries: a larger number is no number in JSON any more.
pub const MAX_SIZE: u64 = 1 << 53;

/// A tile, or a bundle of entries with the same hashes below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TilePlace {
    pub bundle: bool,
    /// Of tiles: 0 for leaves.
    pub level: u8,
    /// Of its first hash, in its level.
    pub start: u64,
    pub width: u16,
}

/// Reads a path after `tile/` (C2SP tlog-tiles): `LEVEL/INDEX[.p/WIDTH]` or `entries/INDEX[.p/WIDTH]`.
pub fn tile_place(path: &str) -> Option<TilePlace> {
    let (level, rest) = path.split_once('/')?;
    let bundle = level == "entries";
    // The library panics at levels and widths that no tile has.
    let known = bundle || level.parse::<u8>().is_ok_and(|it| it < 64);
    let partial = rest.rsplit_once(".p/").is_none_or(|(_, width)| width.starts_with(|it| '0' < it));
    let level = if bundle { "data" } else { level };
    if !known || !partial {
        return None;
    }
    let tile = Tile::from_path(&format!("tile/{TILE_HEIGHT}/{level}/{rest}")).ok()?;
    (tile.level_index() < MAX_SIZE >> TILE_HEIGHT).then(|| TilePlace {
        bundle,
        level: tile.level(),
        start: tile.level_index() << TILE_HEIGHT,
        width: u16::try_from(tile.width()).expect("256 at most"),
    })
}

/// RFC 6962, section 2.1: the hash of an entry.
pub fn leaf_hash(body: &[u8]) -> Hash {
    record_hash(body)
}

/// What a tree ends with: all that is needed to append to it, and to know its root.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frontier {
    size: u64,
    /// Roots of the complete subtrees, the largest first: one for each bit of the size.
    subtrees: Vec<Hash>,
}

/// A complete subtree that came to be by an append; of height 0 the leaf itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Subtree {
    pub height: u8,
    /// Its place among those of its height.
    pub index: u64,
    pub hash: Hash,
}

impl Frontier {
    /// Reads what [`bytes`](Self::bytes) wrote; nothing if it is not that of a tree of so many leaves.
    pub fn read(size: u64, bytes: &[u8]) -> Option<Self> {
        let (hashes, rest) = bytes.as_chunks::<HASH_SIZE>();
        (rest.is_empty() && hashes.len() == size.count_ones() as usize)
            .then(|| Self { size, subtrees: hashes.iter().copied().map(Hash).collect() })
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.subtrees.iter().flat_map(|it| it.0).collect()
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf, and says which subtrees are complete now.
    pub fn append(&mut self, leaf: Hash, mut complete: impl FnMut(Subtree)) {
        let mut hash = leaf;
        complete(Subtree { height: 0, index: self.size, hash });
        // As many as the size ends with one-bits: each is as large as what is merged so far.
        for height in 1..=self.size.trailing_ones() {
            let left = self.subtrees.pop().expect("a subtree for each bit");
            hash = node_hash(left, hash);
            let height = u8::try_from(height).expect("a size has 64 bits");
            complete(Subtree { height, index: self.size >> height, hash });
        }
        self.subtrees.push(hash);
        self.size += 1;
    }

    /// The hash of the tree.
    pub fn root(&self) -> Hash {
        let mut subtrees = self.subtrees.iter().rev().copied();
        let Some(last) = subtrees.next() else { return EMPTY_HASH };
        subtrees.fold(last, |right, left| node_hash(left, right))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use tlog_tiles::{
        Error, HashReader, stored_hash_index, stored_hashes_for_record_hash, tree_hash,
    };

    use super::*;

    #[derive(Default)]
    struct Stored(RefCell<Vec<Hash>>);

    impl HashReader for Stored {
        fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, Error> {
            let all = self.0.borrow();
            Ok(indexes.iter().map(|it| all[usize::try_from(*it).unwrap()]).collect())
        }
    }

    #[test]
    fn every_root_is_that_of_another_implementation() {
        let stored = Stored::default();
        let mut frontier = Frontier::default();
        let mut subtrees = HashMap::new();
        assert_eq!(frontier.root(), EMPTY_HASH);
        for n in 0..1_200_u64 {
            let leaf = leaf_hash(&n.to_be_bytes());
            let new = stored_hashes_for_record_hash(n, leaf, &stored).unwrap();
            stored.0.borrow_mut().extend(new);
            frontier.append(leaf, |it| {
                subtrees.insert((it.height, it.index), it.hash);
            });
            assert_eq!(frontier.root(), tree_hash(n + 1, &stored).unwrap(), "{n}");
            assert_eq!(Frontier::read(n + 1, &frontier.bytes()), Some(frontier.clone()));
        }
        for ((height, index), hash) in subtrees {
            let there = stored.read_hashes(&[stored_hash_index(height, index)]).unwrap();
            assert_eq!(there, [hash]);
        }
    }

    #[test]
    fn a_frontier_of_another_size_is_none() {
        assert_eq!(Frontier::read(3, &[0; 32]), None);
        assert_eq!(Frontier::read(1, &[0; 33]), None);
        assert_eq!(Frontier::read(0, &[]), Some(Frontier::default()));
    }

    #[test]
    fn a_path_is_one_tiles_and_a_tile_has_one_path() {
        let tile = |bundle, level, start, width| Some(TilePlace { bundle, level, start, width });
        assert_eq!(tile_place("0/000"), tile(false, 0, 0, 256));
        assert_eq!(tile_place("2/x001/x234/067.p/255"), tile(false, 2, 1_234_067 << 8, 255));
        assert_eq!(tile_place("entries/001.p/1"), tile(true, 0, 256, 1));
        for path in [
            "",
            "0",
            "0/",
            "/000",
            "0/0",
            "0/0000",
            "0/x000",
            "0/x000/001",
            "00/000",
            "64/000",
            "-1/000",
            "+1/000",
            "0/000.p",
            "0/000.p/",
            "0/000.p/0",
            "0/000.p/00",
            "0/000.p/+0",
            "0/000.p/01",
            "0/000.p/256",
            "0/000.p/1/1",
            "data/000",
            "entries",
            "entries/000.p/0",
            "entries/entries/000",
            "0/../000",
            // 2^56: its first hash has the number of the log's first.
            "0/x072/x057/x594/x037/x927/936",
            "0/x018/x446/x744/x073/x709/x551/615",
        ] {
            assert_eq!(tile_place(path), None, "{path}");
        }
    }
}
