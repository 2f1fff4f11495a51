#!/usr/bin/env python3
"""A second opinion on the audit log: shares no code with the broker, and needs only Python 3.10 and its standard library.

Written from RFC 6962 (section 2.1), RFC 9162 (sections 2.1.3.2 and 2.1.4.2), RFC 8032 (section 5.1), C2SP signed-note,
tlog-checkpoint, tlog-tiles and tlog-proof, and the lines that broker/src/log/export.rs documents.

It says nothing about people's signatures under a lease's statement, only that the statement is the one that was logged.

    verify_log.py export FILE [--key VKEY]                 an exported log
    verify_log.py proof FILE --key VKEY                    one event's proof
    verify_log.py tiles DIR [--key VKEY]                   checkpoint, tile/…, tile/entries/…
    verify_log.py consistency SOURCE OLD NEW [--key VKEY]  two checkpoints, by the entries of an export or of tiles

Exit codes: 0 nothing is wrong; 1 something is, and it is on standard error; 2 usage.
"""

import argparse
import base64
import binascii
import datetime
import hashlib
import json
import os
import re
import sys

# A larger number is no count of events, and some programs would round it.
MAX_SIZE = 2**53
# The database's clock and a server's may be so far apart.
SKEW_NANOSECONDS = 15 * 60 * 10**9


class Wrong(Exception):
    """What was read is not what it should be."""


def demand(condition, why):
    if not condition:
        raise Wrong(why)


# ------------------------------------------------------------------------------------------ Ed25519 (RFC 8032, 5.1)

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
SQRT_M1 = pow(2, (P - 1) // 4, P)
NEUTRAL = (0, 1, 1, 0)


def add(p, q):
    """Section 5.1.4: extended coordinates."""
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % P, g * h % P, f * g % P, e * h % P)


def multiply(scalar, point):
    product = NEUTRAL
    while scalar:
        if scalar & 1:
            product = add(product, point)
        point = add(point, point)
        scalar >>= 1
    return product


def same_point(p, q):
    return (p[0] * q[2] - q[0] * p[2]) % P == 0 and (p[1] * q[2] - q[1] * p[2]) % P == 0


def decode_point(octets):
    """Section 5.1.3; nothing if the octets are no point."""
    number = int.from_bytes(octets, "little")
    sign, y = number >> 255, number & (2**255 - 1)
    if len(octets) != 32 or P <= y:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * SQRT_M1 % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return (x, y, 1, x * y % P)


BASE = decode_point(bytes.fromhex("58" + "66" * 31))


def is_signed(public, message, signature):
    """Section 5.1.7."""
    if len(signature) != 64:
        return False
    a, r = decode_point(public), decode_point(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if a is None or r is None or L <= s:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    return same_point(multiply(s, BASE), add(r, multiply(k, a)))


# --------------------------------------------------------------------------------- the tree (RFC 6962, RFC 9162)


def leaf_hash(entry):
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """A tree over leaf hashes."""

    def __init__(self, leaves=()):
        self.leaves = list(leaves)
        self.known = {}

    def subtree(self, height, index):
        """The hash of the complete subtree of 2^height leaves, the index-th of them."""
        if height == 0:
            demand(index < len(self.leaves), f"entry {index} is not there")
            return self.leaves[index]
        if (height, index) not in self.known:
            halves = (self.subtree(height - 1, 2 * index + half) for half in (0, 1))
            self.known[height, index] = node_hash(*halves)
        return self.known[height, index]

    def hash(self, first, end):
        """MTH(D[first:end]), section 2.1 of RFC 6962; `first` is where a subtree begins."""
        count = end - first
        if count == 0:
            return hashlib.sha256(b"").digest()
        if count & (count - 1) == 0:
            return self.subtree(count.bit_length() - 1, first // count)
        split = first + largest_power_below(count)
        return node_hash(self.hash(first, split), self.hash(split, end))

    def consistency_proof(self, old, new):
        """PROOF(old, D[new]), section 2.1.2 of RFC 6962."""
        return self.subproof(old, 0, new, True)

    def subproof(self, count, first, end, is_whole):
        if count == end - first:
            return [] if is_whole else [self.hash(first, end)]
        k = largest_power_below(end - first)
        if count <= k:
            return self.subproof(count, first, first + k, is_whole) + [self.hash(first + k, end)]
        return self.subproof(count - k, first + k, end, False) + [self.hash(first, first + k)]


def largest_power_below(count):
    return 1 << ((count - 1).bit_length() - 1)


def check_inclusion(path, index, size, leaf, root):
    """RFC 9162, section 2.1.3.2."""
    demand(index < size, f"index {index} is not in a tree of {size}")
    fn, sn, r = index, size - 1, leaf
    for p in path:
        demand(sn != 0, "the path is too long")
        if fn & 1 or fn == sn:
            r = node_hash(p, r)
            while not fn & 1 and fn != 0:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node_hash(r, p)
        fn, sn = fn >> 1, sn >> 1
    demand(sn == 0, "the path is too short")
    demand(r == root, "the path does not lead to the checkpoint's root")


def check_consistency(path, old, old_root, new, new_root):
    """RFC 9162, section 2.1.4.2; that the same tree is consistent with itself needs no path."""
    demand(0 < old <= new, f"{old} is no earlier size than {new}")
    if old == new:
        demand(not path and old_root == new_root, "two checkpoints of one size differ")
        return
    demand(path, "the consistency proof is empty")
    if old & (old - 1) == 0:
        path = [old_root] + path
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for c in path[1:]:
        demand(sn != 0, "the consistency proof is too long")
        if fn & 1 or fn == sn:
            fr, sr = node_hash(c, fr), node_hash(c, sr)
            while not fn & 1 and fn != 0:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, c)
        fn, sn = fn >> 1, sn >> 1
    demand(sn == 0, "the consistency proof is too short")
    demand(fr == old_root, f"the tree of {new} entries does not begin with the one of {old}")
    demand(sr == new_root, f"the consistency proof does not lead to the root of {new} entries")


# ----------------------------------------------------------- signed notes and checkpoints (C2SP)


def from_base64(text, why):
    """RFC 4648, section 4, in its one spelling."""
    try:
        octets = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Wrong(why) from None
    demand(base64.b64encode(octets).decode() == text, why)
    return octets


def hash_of(text):
    octets = from_base64(text, f"{text!a} is no hash")
    demand(len(octets) == 32, f"{text!a} is no hash")
    return octets


def number_of(text):
    demand(re.fullmatch("0|[1-9][0-9]{0,15}", text) and int(text) <= MAX_SIZE, f"{text!a} is no number of entries")
    return int(text)


class Key:
    """A verifier key: NAME+HASH+KEY (C2SP signed-note), of type Ed25519."""

    def __init__(self, text):
        parts = text.split("+", 2)
        demand(len(parts) == 3, f"{text!a} is no verifier key")
        self.name, self.id, octets = parts[0], parts[1], from_base64(parts[2], f"{text!a} is no verifier key")
        demand(len(octets) == 33 and octets[0] == 1, f"{text!a} is no Ed25519 key")
        self.public = octets[1:]
        demand(self.id == key_id(self.name, self.public).hex(), f"the hash in {text!a} is not the key's")

    def named(self, name):
        """The same key for another log: one that goes on after events were lost has another name."""
        octets = base64.b64encode(b"\x01" + self.public).decode()
        return Key(f"{name}+{key_id(name, self.public).hex()}+{octets}")


def key_id(name, public):
    return hashlib.sha256(name.encode() + b"\n\x01" + public).digest()[:4]


class Checkpoint:
    """C2SP tlog-checkpoint, without extension lines."""

    def __init__(self, note):
        demand(not re.search("[\x00-\x09\x0b-\x1f]", note), "a note has control characters")
        text, separator, signatures = note.rpartition("\n\n")
        demand(separator and signatures.endswith("\n"), "a note has no signatures")
        self.text = text + "\n"
        lines = text.split("\n")
        demand(len(lines) == 3 and lines[0], "a note is no checkpoint of three lines")
        self.origin, self.size, self.root = lines[0], number_of(lines[1]), hash_of(lines[2])
        self.signatures = [self.signature(it) for it in signatures[:-1].split("\n")]

    @staticmethod
    def signature(line):
        match = re.fullmatch(r"\u2014 ([^\s+]+) ([A-Za-z0-9+/=]+)", line)
        demand(match, f"{line!a} is no signature line")
        octets = from_base64(match[2], f"{line!a} is no signature line")
        demand(4 < len(octets), f"{line!a} is no signature line")
        return match[1], octets[:4], octets[4:]

    def check(self, key):
        demand(key.name == self.origin, f"the checkpoint is of {self.origin!a}, the key of {key.name!a}")
        known = [it[2] for it in self.signatures if it[0] == key.name and it[1].hex() == key.id]
        demand(known, f"the checkpoint of {self.size} entries is not signed by {key.name}+{key.id}")
        for signature in known:
            good = is_signed(key.public, self.text.encode(), signature)
            demand(good, f"the signature under the checkpoint of {self.size} entries is not good")


# ------------------------------------------------------------------------------------------------------- an export

REQUIRED = {"seq", "recorded_at", "id", "type", "occurred_at", "actor"}
OPTIONAL = {"agent", "sponsor", "scope", "lease_id", "session_id"}
UNSIGNED_TIERS = {"read-only", "staging-write"}


def unique(pairs):
    names = [name for name, _ in pairs]
    demand(len(names) == len(set(names)), "a name stands twice in one JSON object")
    return dict(pairs)


JSON = json.JSONDecoder(object_pairs_hook=unique)


def parse_json(text):
    try:
        return JSON.decode(text)
    except (ValueError, RecursionError):
        raise Wrong("it is not JSON") from None


def nanoseconds(text):
    """An RFC 3339 time, counted from year 1."""
    form = r"(\d{4}-\d\d-\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))"
    match = re.fullmatch(form, text, re.ASCII) if isinstance(text, str) else None
    demand(match, f"{text!a} is no time")
    try:
        day = datetime.date.fromisoformat(match[1]).toordinal()
    except ValueError:
        raise Wrong(f"{text!a} is no time") from None
    seconds = ((day * 24 + int(match[2])) * 60 + int(match[3])) * 60 + int(match[4])
    if match[6]:
        offset = (int(match[7]) * 60 + int(match[8])) * 60
        seconds += offset if match[6] == "-" else -offset
    return seconds * 10**9 + int((match[5] or "").ljust(9, "0"))


def cut(line, name):
    """The columns of an event's line, and the exact text of its body: what stands between `"body":` and the last brace."""
    head = '{"' + name + '":'
    demand(line.startswith(head), "it is not JSON")
    try:
        columns, end = JSON.raw_decode(line, len(head))
    except (ValueError, RecursionError):
        raise Wrong("it is not JSON") from None
    rest = line[end:]
    demand(rest.startswith(',"body":{') and rest.endswith("}}"), "it has no body where it belongs")
    return columns, rest[len(',"body":') : -1]


def check_columns(columns, body, more):
    demand(isinstance(columns, dict) and isinstance(body, dict), "it is no event")
    names = set(columns)
    demand(names >= REQUIRED | more, f"columns are not there: {sorted((REQUIRED | more) - names)}")
    # That the row's readable copy is not what the bytes say is told by a column of its own.
    demand(names <= REQUIRED | OPTIONAL | more, f"columns are too many: {sorted(names - REQUIRED - OPTIONAL - more)}")
    data = body.get("data")
    demand(isinstance(data, dict), "the body has no data")
    for name in ("id", "type", "actor"):
        demand(columns[name] == body.get(name), f"column {name} is not what the body says")
    for name in OPTIONAL:
        demand(columns.get(name) == data.get(name), f"column {name} is not what the body says")
    at = nanoseconds(body.get("time"))
    demand(nanoseconds(columns["occurred_at"]) == at, "column occurred_at is not what the body says")
    apart = abs(nanoseconds(columns["recorded_at"]) - at)
    demand(apart <= SKEW_NANOSECONDS, "column recorded_at is far from the body's time")
    return data.get("detail") or {}


class ExportedLog:
    """Takes a file line by line, and keeps all leaf hashes."""

    def __init__(self, pinned):
        self.pinned = pinned
        self.tree = Tree()
        self.origin = self.key = None
        self.next_key = self.next_origin = None
        self.covered = self.waiting = self.checkpoints = 0
        self.pruned, self.exported = [], []
        # A signed lease that was issued, with its statement's hash: its approval has to follow.
        self.issued = None
        self.ended = False
        self.wrong = []

    def take(self, number, line):
        try:
            self.take_line(number, line)
        except Wrong as wrong:
            self.wrong.append(f"line {number}: {wrong}")

    def take_line(self, number, line):
        demand(not self.ended, "something follows the end")
        kind = line[2 : line.find('"', 2)] if line.startswith('{"') else ""
        demand((number == 1) == (kind == "export"), "the first line, and no other, tells which log this is")
        if kind != "approval" and self.issued:
            self.issued = None
            self.wrong.append(f"line {number}: a signed lease was issued, and no approval follows")
        if kind in ("event", "waiting"):
            return getattr(self, "take_" + kind)(*cut(line, kind))
        demand(kind in ("export", "pruned", "checkpoint", "approval", "unrecorded", "end"), "it is no line of a log")
        whole = parse_json(line)
        demand(list(whole) == [kind], "it holds more than one thing")
        return getattr(self, "take_" + kind)(whole[kind])

    def take_export(self, header):
        demand(header.get("format") == "broker-log/v1", "it is of another format")
        nanoseconds(header.get("exported_at"))
        self.origin = header["origin"]
        # Whoever asks for a key goes by it, whatever the file says.
        self.key = Key(self.pinned or header["key"]).named(self.origin)
        demand(header["key"] == (self.pinned or header["key"]), "the log began with another key than the one asked for")

    def take_event(self, columns, body):
        index, size = columns.get("index"), len(self.tree.leaves)
        logged = hash_of(columns.get("leaf_hash") or "")
        # What was logged goes into the tree, so that what follows a changed entry is judged by itself.
        self.append(index, logged)
        demand(leaf_hash(body.encode()) == logged, f"entry {size}: the body is not the one that was logged")
        body = parse_json(body)
        detail = check_columns(columns, body, {"index", "leaf_hash"})
        kind = columns["type"]
        if kind == "lease.issued" and detail.get("tier") not in UNSIGNED_TIERS:
            self.issued = (columns.get("lease_id"), detail.get("statement_sha256"))
        elif kind == "log.rotated":
            self.next_key = Key(detail["new"])
        elif kind == "log.recovered":
            self.next_origin = detail["origin"]
            lost = Checkpoint(detail["anchored"])
            had, there = detail["size"], lost.size
            raise Wrong(f"events were lost: {had} of {there} were left, and the log goes on as {self.next_origin!a}")
        elif kind == "log.partition-exported":
            self.exported.append((detail["first_index"], detail["last_index"]))

    def append(self, index, hashed):
        size = len(self.tree.leaves)
        demand(type(index) is int and index == size, f"entry {index} stands where {size} belongs")
        self.tree.leaves.append(hashed)

    def take_pruned(self, pruned):
        self.append(pruned["index"], hash_of(pruned["leaf_hash"]))
        self.pruned.append(pruned["index"])

    def take_checkpoint(self, note):
        self.checkpoints += 1
        checkpoint, size = Checkpoint(note), len(self.tree.leaves)
        origin = self.next_origin or self.origin
        demand(checkpoint.origin == origin, f"the checkpoint is of another log: {checkpoint.origin!a}")
        # The old key hands over to the new one: both have signed.
        for key in filter(None, (self.key, self.next_key)):
            checkpoint.check(key.named(origin))
        demand(checkpoint.size == size, f"a checkpoint of {checkpoint.size} entries follows {size}")
        root = self.tree.hash(0, size)
        demand(checkpoint.root == root, f"the first {size} entries do not come to the root that was signed")
        self.key, self.next_key = self.next_key or self.key, None
        self.origin, self.next_origin = origin, None
        self.covered = size

    def take_approval(self, approval):
        issued, self.issued = self.issued, None
        demand(issued, "an approval of nothing that was issued")
        statement = from_base64(approval["statement"], "the statement is not base64")
        demand(approval["lease"]["id"] == issued[0], "the approval is of another lease")
        # The first versions did not tell the hash.
        same = issued[1] in (None, hashlib.sha256(statement).hexdigest())
        demand(same, "the approved statement is not the one of the lease")
        demand(approval["signatures"], "nobody has approved")

    def take_waiting(self, columns, body):
        self.waiting += 1
        check_columns(columns, parse_json(body), set())

    def take_unrecorded(self, it):
        raise Wrong(f"{it['kind']!a} {it['id']!a} has no event {it['event']!a}")

    def take_end(self, end):
        self.ended = True
        size = len(self.tree.leaves)
        demand(end["size"] == size, f"the log has {end['size']} entries, the file {size}")
        demand(end["waiting"] == self.waiting, f"{end['waiting']} events wait, the file has {self.waiting}")

    def finish(self):
        if self.issued:
            self.wrong.append("a signed lease was issued, and no approval follows")
        if self.covered < len(self.tree.leaves):
            self.wrong.append(f"only {self.covered} of {len(self.tree.leaves)} entries are under a checkpoint that is good")
        if not self.ended:
            self.wrong.append("the file ends before its end")
        for index in self.pruned:
            if not any(first <= index <= last for first, last in self.exported):
                self.wrong.append(f"entry {index} is gone, and nothing tells that it was exported")


def read_export(path, pinned):
    log = ExportedLog(pinned)
    with open(path, "rb") as file:
        for number, octets in enumerate(file, 1):
            try:
                line = octets.decode()
            except UnicodeDecodeError:
                log.wrong.append(f"line {number}: it is no text")
                continue
            try:
                log.take(number, line.removesuffix("\n"))
            except (KeyError, TypeError, AttributeError) as error:
                log.wrong.append(f"line {number}: a part is missing or of another kind: {error!a}")
    log.finish()
    return log


def verify_export(path, pinned):
    log = read_export(path, pinned)
    if log.wrong:
        raise Wrong("\n".join(log.wrong))
    return f"{len(log.tree.leaves)} entries, {log.checkpoints} checkpoints, {log.waiting} events waiting"


# ------------------------------------------------------------------------------------------ a proof (C2SP tlog-proof)


def verify_proof(path, key):
    head, separator, note = read_text(path).partition("\n\n")
    demand(separator, "it has no checkpoint")
    lines = head.split("\n")
    demand(3 <= len(lines) and lines[0] == "c2sp.org/tlog-proof@v1", "it is no proof")
    extra, index, *hashes = lines[1:]
    demand(extra.startswith("extra "), "it does not tell the event")
    demand(index.startswith("index "), "it does not tell the index")
    body = from_base64(extra[len("extra ") :], "the event is not base64")
    index, checkpoint = number_of(index[len("index ") :]), Checkpoint(note)
    checkpoint.check(Key(key))
    check_inclusion([hash_of(it) for it in hashes], index, checkpoint.size, leaf_hash(body), checkpoint.root)
    return f"entry {index} of {checkpoint.size}: {body.decode(errors='replace')!a}"


# --------------------------------------------------------------------------------------------- tiles (C2SP tlog-tiles)


def tile_path(level, index, width):
    """`tile/<L>/<N>[.p/<W>]`; N in elements of three digits."""
    elements = [f"{index % 1000:03}"]
    while 1000 <= index:
        index //= 1000
        elements.insert(0, f"x{index % 1000:03}")
    return f"tile/{level}/{'/'.join(elements)}" + ("" if width == 256 else f".p/{width}")


def tiles_of(size, level):
    """Index and width of each tile of a level."""
    count = size >> (8 * level)
    tiles = [(index, 256) for index in range(count // 256)]
    return tiles + ([(count // 256, count % 256)] if count % 256 else [])


class Tiles(Tree):
    """A tree whose hashes come from tiles, each as high up as it can be."""

    def __init__(self, folder, size):
        super().__init__()
        self.folder, self.size, self.hashes = folder, size, {}

    def tile(self, level, index, width):
        if (level, index) not in self.hashes:
            path = tile_path(level, index, width)
            octets = read_bytes(os.path.join(self.folder, path))
            demand(len(octets) == 32 * width, f"{path} has {len(octets)} bytes, and not {width} hashes")
            self.hashes[level, index] = [octets[at : at + 32] for at in range(0, len(octets), 32)]
        return self.hashes[level, index]

    def subtree(self, height, index):
        if height % 8:
            return super().subtree(height, index)
        level, count = height // 8, self.size >> height
        demand(index < count, f"the subtree {index} of height {height} is not in the tree")
        width = min(256, count - index // 256 * 256)
        return self.tile(level, index // 256, width)[index % 256]


def read_bundle(folder, index, width):
    path = tile_path("entries", index, width)
    octets, entries = read_bytes(os.path.join(folder, path)), []
    while octets:
        length = int.from_bytes(octets[:2], "big")
        demand(2 + length <= len(octets), f"{path} ends within an entry")
        entries.append(octets[2 : 2 + length])
        octets = octets[2 + length :]
    demand(len(entries) == width, f"{path} has {len(entries)} entries, and not {width}")
    return entries


def verify_tiles(folder, key):
    checkpoint = Checkpoint(read_text(os.path.join(folder, "checkpoint")))
    if key:
        checkpoint.check(Key(key))
    size = checkpoint.size
    bundles = (read_bundle(folder, *it) for it in tiles_of(size, 0))
    entries = Tree(leaf_hash(entry) for bundle in bundles for entry in bundle)
    demand(entries.hash(0, size) == checkpoint.root, "the entries do not come to the checkpoint's root")
    tiles, level = Tiles(folder, size), 0
    while size >> (8 * level):
        for index, width in tiles_of(size, level):
            for at, hashed in enumerate(tiles.tile(level, index, width)):
                there = entries.subtree(8 * level, index * 256 + at)
                demand(hashed == there, f"{tile_path(level, index, width)}: hash {at} is not that of the entries")
        level += 1
    demand(tiles.hash(0, size) == checkpoint.root, "the tiles do not come to the checkpoint's root")
    return f"{size} entries, tiles of {level} levels"


def verify_consistency(source, old, new, key):
    old, new = Checkpoint(read_text(old)), Checkpoint(read_text(new))
    if key:
        old.check(Key(key))
        new.check(Key(key))
    demand(old.origin == new.origin, "the checkpoints are of two logs")
    if os.path.isdir(source):
        tree = Tiles(source, Checkpoint(read_text(os.path.join(source, "checkpoint"))).size)
    else:
        tree = read_export(source, None).tree
    path = tree.consistency_proof(old.size, new.size) if 0 < old.size <= new.size else []
    check_consistency(path, old.size, old.root, new.size, new.root)
    return f"the {new.size} entries begin with the {old.size}; {len(path)} hashes say so"


# -------------------------------------------------------------------------------------------------------------------


def read_bytes(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise Wrong(f"{path}: {error.strerror}") from None


def read_text(path):
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError:
        raise Wrong(f"{path} is no text") from None


def main():
    parser = argparse.ArgumentParser(description="Verifies the audit log without the broker's code.")
    commands = parser.add_subparsers(dest="command", required=True)
    forms = {"export": "file", "proof": "file", "tiles": "dir", "consistency": "source old new"}
    for name, parts in forms.items():
        command = commands.add_parser(name)
        for part in parts.split():
            command.add_argument(part)
        command.add_argument("--key", required=name == "proof", help="the log's verifier key, NAME+HASH+KEY")
    arguments = vars(parser.parse_args())
    verify = globals()["verify_" + arguments.pop("command")]
    key = arguments.pop("key")
    try:
        print("good:", verify(*arguments.values(), key), "" if key else "(by no key from elsewhere)")
    except Wrong as wrong:
        print(f"WRONG: {wrong}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
