"""`params.yaml` says everything about a run, and a slip in it stops the run before it starts."""

import copy
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import yaml
from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, model_validator

from .errors import ParameterError, did_you_mean
from .files import project_root
from .registry import load_extensions
from .sections import (
    DATASETS,
    METHODS,
    Augment,
    Base,
    Count,
    Data,
    Method,
    Name,
    Network,
    Outcomes,
    Profile,
    Section,
    Study,
    Training,
)


@dataclass(frozen=True)
class Row:
    "A row of the table of runs, for every seed: a pretrained network, and how it is trained further."

    name: str
    base: str | None  # of a study; the main table has the profile's own network
    method: Method
    network: Network
    augmentation: str
    pretrain: Training | None
    finetune: Training
    augment: Augment | None = None  # where it differs from that of the profile's images

    @property
    def augmented(self) -> str:
        "By which policy, and by what in place of the profile's augmentation."
        return self.augmentation + (f"; {self.augment.words}" if self.augment else "")

    @property
    def after(self) -> str:
        "Where the network is cut."
        return self.method.after or self.network.after


class Params(Section):
    "The whole of `params.yaml`."

    profile: Name
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    extensions: list[str] = []  # Python files, relative to this one, that add to registries
    methods: Annotated[dict[Name, SerializeAsAny[Method]], Field(min_length=1)]
    outcomes: Outcomes | None = None  # null: nothing was named, every comparison is secondary
    checkpoint_steps: Count = 200  # between two writes of a training run's progress
    timeout: Annotated[int, Field(ge=1, le=1_000_000)] = 600  # seconds that a run's processes wait for others
    bases: dict[Name, Base] = {}
    base_methods: dict[Name, SerializeAsAny[Method]] = {}  # what every base is tested after
    studies: dict[Name, Study] = {}
    profiles: dict[Name, Profile]

    @model_validator(mode="after")
    def _names_are_known_and_free(self):
        if self.profile not in self.profiles:
            allowed = ", ".join(map(repr, self.profiles))
            hint = did_you_mean(self.profile, self.profiles)
            raise ValueError(f"profile is {self.profile!r}; allowed are {allowed}{hint}")
        for section, taken, of in (
            ("methods", ("pretrained", "autoencoder", "bases"), "checkpoints"),
            ("profiles", ("bench", "figures", "tables"), "results"),
        ):
            for name in taken:
                if name in getattr(self, section):
                    raise ValueError(
                        f"{section} has {name!r}, which is the name of another folder of {of}; choose another"
                    )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}; each may stand there once")
        return self

    @model_validator(mode="after")
    def _main_table_has_its_rows(self):
        wanted = {"standard": "nothing", "finetune": "clean", "advbn": "adversarial"}
        for name in wanted:
            if name not in self.methods:
                raise ValueError(
                    f"methods has no {name!r}; tables and figures compare standard, finetune and advbn, and "
                    f"others may stand beside them"
                )
        for name, train in wanted.items():
            if self.methods[name].train != train:
                raise ValueError(
                    f"methods.{name}.train is {self.methods[name].train!r}; allowed is {train!r}, other rows "
                    f"may train as they like"
                )
        if self.methods["finetune"].after:
            raise ValueError(
                "methods.finetune is the control and is cut where the profile says; it takes no 'after'"
            )
        return self

    @model_validator(mode="after")
    def _outcomes_compare_two_rows(self):
        for rank, compared in (self.outcomes.each if self.outcomes else {}).items():
            for key, name in compared:
                if name not in self.methods:
                    raise ValueError(
                        f"outcomes.{rank}.{key} is {name!r}; allowed are {', '.join(self.methods)}"
                        + did_you_mean(name, self.methods)
                    )
            if compared.method == compared.against:
                raise ValueError(f"outcomes.{rank} compares {compared.method!r} with itself")
        return self

    @model_validator(mode="after")
    def _studies_have_their_bases(self):
        for study, section in self.studies.items():
            for base in section.bases:
                if base not in self.bases:
                    raise ValueError(
                        f"studies.{study}.bases has {base!r}; allowed are {', '.join(self.bases)}"
                        + did_you_mean(base, self.bases)
                    )
            if len(set(section.bases)) != len(section.bases):
                raise ValueError(
                    f"studies.{study}.bases are {', '.join(section.bases)}; each may stand there once"
                )
        there = [base for section in self.studies.values() for base in section.bases]
        there += [base for profile in self.profiles.values() for base in profile.bases_of_studies]
        for base in self.bases if not (self.current.short and self.current.short.studies) else ():
            if base not in there:
                raise ValueError(f"bases.{base} is in no study; name it in one, or remove it")
        short = self.current.short
        if short and not set(short.seeds) <= set(self.seeds):
            raise ValueError(
                f"profiles.{self.profile}.short.seeds are {short.seeds}; allowed are those of seeds, "
                f"{self.seeds}"
            )
        return self

    @model_validator(mode="after")
    def _studies_have_controls(self):
        for study, section in self.studies.items():
            if twice := [name for name in section.methods if name in self.base_methods]:
                raise ValueError(
                    f"studies.{study}.methods.{twice[0]} is the name of one of base_methods, which stand in "
                    f"every study; choose another"
                )
            methods = self.methods_of(study)
            controls = [method.after for method in methods.values() if method.train == "clean"]
            for name, method in methods.items():
                if (count := controls.count(method.after)) != 1:
                    raise ValueError(
                        f"studies.{study}.methods.{name} is cut after "
                        f"{method.after or 'the place of its network'!r}, where {count} methods train clean; "
                        f"there must be one to compare with"
                    )
        control = self.base_methods.get("finetune")
        if self.studies and (control is None or control.train != "clean" or control.after):
            raise ValueError(
                "base_methods has no 'finetune' that trains clean, cut where its network says; the others "
                "are compared with it"
            )
        return self

    @property
    def current(self) -> Profile:
        "The profile that `profile` names."
        return self.profiles[self.profile]

    @property
    def main_methods(self) -> dict:
        "The rows of the main table: `methods`, with what the current profile says of them."
        return merged_methods(self, self.profile)

    @property
    def run_studies(self) -> dict:
        "The studies that the current profile has, name to `Study`."
        there = self.studies.items() if self.current.short else ()
        return {name: study for name, study in there if not study.left_out}

    @property
    def run_bases(self) -> dict:
        "The bases of these, name to `Base`."
        used = {base for study in self.run_studies.values() for base in study.bases}
        return {name: base for name, base in self.bases.items() if name in used}

    def rows(self, study: str | None = None) -> dict:
        """The table of runs, name to `Row`: of the main table, or of a study, every base with every method,
        none if the profile has it not."""
        profile = self.current
        if study is None:
            return {
                name: Row(name, None, method, profile.network, "none", profile.pretrain, profile.finetune)
                for name, method in self.main_methods.items()
            }
        return {
            name: row
            for base in (self.studies[study].bases if study in self.run_studies else ())
            for name, row in self._short_rows(base, self.methods_of(study))
        }

    def row(self, name: str) -> Row:
        "The row of the main table called `name`; raises `ParameterError` with the nearest name."
        rows = self.rows()
        if name not in rows:
            hint = did_you_mean(name, rows)
            raise ParameterError(f"no method {name!r} in params.yaml; there are {', '.join(rows)}{hint}")
        return rows[name]

    def methods_of(self, study: str) -> dict:
        "All methods of a study: those of every base, and its own."
        return self.base_methods | self.studies[study].methods

    def base_rows(self, base: str) -> dict:
        "The runs of a base that all studies share, those of `base_methods`."
        return dict(self._short_rows(base, self.base_methods))

    def _short_rows(self, base, methods):
        profile, short, start = self.current, self.current.short, self.bases[base]
        if base in self.run_bases:
            lr = {"lr": start.lr} if start.lr else {}
            pretrain = profile.pretrain.model_copy(update={"epochs": short.pretrain_epochs, **lr})
            finetune = profile.finetune.model_copy(update={"epochs": short.finetune_epochs})
            for name, method in methods.items():
                yield (
                    f"{base}/{name}",
                    Row(
                        name,
                        base,
                        method,
                        start.network or profile.network,
                        start.augmentation,
                        pretrain,
                        finetune,
                        start.augment,
                    ),
                )


SAID_OF = {"bases": Base, "base_methods": Method, "studies": Study}  # by a profile's section `short`


def _merged(said: dict, over: dict) -> dict:
    "`said`, with what `over` says in its place, key by key at any depth."
    inner = {
        key: _merged(said[key], value)
        for key, value in over.items()
        if isinstance(value, dict) and isinstance(said.get(key), dict)
    }
    return said | over | inner


def _check_there(name, section, kind, where):
    "Raise `ParameterError`, with the nearest name, unless a section of that kind has the name."
    if name not in section:
        hint = did_you_mean(name, section, f"; there are {', '.join(section)}")
        raise ParameterError(f"{where}: {kind} has no {name!r}{hint}")


def _validated(kind, said, source, where):
    "A section of the kind; what is wrong with what is `said` of it is a `ParameterError`."
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        raise ParameterError(explain(error, source, kind, where)) from None


def _in_profile(content: dict, source: str) -> dict:
    """`content`, with bases, their methods and studies as the section `short` of its profile has them.

    Raises `ParameterError` for what there is not, with the nearest name, and for slips."""
    profile = (content.get("profiles") or {}).get(content.get("profile")) or {}
    said = {key: (profile.get("short") or {}).get(key) or {} for key in SAID_OF}
    content = content | {key: dict(content.get(key) or {}) for key in SAID_OF if said[key]}
    for key, kind in SAID_OF.items():
        for name, over in said[key].items():
            where = f"profiles.{content['profile']}.short.{key}.{name}"
            _check_there(name, content[key], key, f"{source}: {where}")
            merged = _merged(content[key][name], {"left_out": True} if over is None else over)
            if isinstance(methods := merged.get("methods"), dict):
                merged["methods"] = {k: method for k, method in methods.items() if method is not None}
            _validated(kind, merged, source, where)
            content[key][name] = merged
    return content


def merged_methods(params: Params, profile: str) -> dict:
    """The methods of the main table as a profile has them, name to `Method`.

    Raises `ParameterError` for a method that there is not, with the nearest name, and for slips in what is
    said of one."""
    merged = dict(params.methods)
    for name, over in params.profiles[profile].methods.items():
        where = f"profiles.{profile}.methods.{name}"
        _check_there(name, merged, "methods", f"params.yaml: {where}")
        for key in {"train", *(["after"] if name == "finetune" else [])} & set(over):
            raise ParameterError(
                f"params.yaml: {where}.{key} is the same in every profile; say it in methods"
            )
        said = _merged(merged[name].model_dump(exclude_unset=True), over)
        merged[name] = _validated(METHODS.find(said["train"]), said, "params.yaml", where)
    return merged


def _section_in(annotation):
    "The first section that a type speaks of: of `dict[Name, Method]` it is `Method`."
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def _known_keys(model, path):
    "The keys that are allowed beside the last key of `path`."
    for key in path:
        if model and key in model.model_fields:
            model = _section_in(model.model_fields[key].annotation)
    return list(model.model_fields) if model else []


def _joined(within, keys):
    return ".".join([*([within] if within else []), *map(str, keys)])


def explain(
    error: ValidationError,
    source: str = "params.yaml",
    model: type = Params,
    within: str = "",
    called=str,
) -> str:
    """The first problem: key, value and what is allowed; of several the next as well, and how many there are.

    `within` is the key of the section that was checked, if it was not all of it; a key is `called` so."""
    lines = []
    for problem in error.errors():
        key = _joined(within, problem["loc"])
        if problem["type"] == "extra_forbidden":
            name, allowed = str(problem["loc"][-1]), _known_keys(model, problem["loc"][:-1])
            hint = did_you_mean(name, allowed, f"; allowed are {', '.join(allowed)}", 0.5)
            lines.append(f"{source}: unknown key {key!r}{hint}")
        elif problem["type"] == "missing":
            lines.append(f"{source}: {key!r} is missing")
        elif problem["type"] == "value_error":
            lines.append(f"{source}: {key + ': ' if key else ''}{problem['ctx']['error']}")
        elif problem["type"] == "string_pattern_mismatch":
            where = problem["loc"][:-2] if problem["loc"][-1] == "[key]" else problem["loc"]
            allowed = (
                "64 hexadecimal digits"
                if "{64}" in problem["ctx"]["pattern"]
                else "letters, digits, - and _, the first a letter or a digit"
            )
            lines.append(
                f"{source}: {_joined(within, where)} has {problem['input']!r}; allowed are {allowed}"
            )
        else:
            told, expected = problem["msg"], problem.get("ctx", {}).get("expected", "")
            hint = did_you_mean(problem["input"], re.findall("'([^']+)'", str(expected)), cutoff=0.6)
            told = f"{called(key)} is {problem['input']!r}; {told[0].lower()}{told[1:]}{hint}"
            lines.append(f"{source}: {told}")
    return "\n".join(lines if len(lines) < 3 else [lines[0], f"{lines[1]} (and {len(lines) - 2} more)"])


class _Once(yaml.SafeLoader):
    "YAML in which a key stands once."

    def construct_mapping(self, node, deep=False):
        keys = [k.value for k, _ in node.value if isinstance(k, yaml.ScalarNode) and k.value != "<<"]
        if twice := [k for k in keys if keys.count(k) > 1]:
            raise yaml.constructor.ConstructorError(
                problem=f"the key {twice[0]!r} stands twice", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


def _special(content, source):
    """`content`, in which the sections of data sets and methods that have a class of their own are objects of
    these classes."""
    content = copy.deepcopy(content)
    places = [(("methods",), METHODS, "train"), (("base_methods",), METHODS, "train")]
    places += [(("studies", study, "methods"), METHODS, "train") for study in content.get("studies") or ()]
    for path, registry, word in places:
        holder = content
        for key in path:
            holder = (holder or {}).get(key) if isinstance(holder, dict) else None
        for name in holder if isinstance(holder, dict) else ():
            _replace(holder, name, registry, word, (source, ".".join((*path, name))))
    profiles = content.get("profiles")
    for name, profile in profiles.items() if isinstance(profiles, dict) else ():
        if isinstance(profile, dict):
            _replace(profile, "data", DATASETS, "name", (source, f"profiles.{name}.data"))
    return content


def _replace(holder, name, registry, word, where):
    "Put the object in the place of a section that is a dictionary with a known `word`."
    section = holder.get(name)
    kind = registry.get(section.get(word)) if isinstance(section, dict) else None
    if kind is not None and kind not in (Method, Data):
        try:
            holder[name] = kind.model_validate(section)
        except ValidationError as error:
            raise ParameterError(explain(error, where[0], kind, where[1])) from None


def parse_params(content: dict, source: str = "params.yaml") -> Params:
    "Checked parameters from a nested dictionary; raises `ParameterError`, a line or two, for slips."
    if not isinstance(content, dict):
        raise ParameterError(f"{source}: holds {type(content).__name__}, not keys and values")
    with suppress(TypeError, AttributeError):  # what is of another kind is said by the check
        content = _in_profile(content, source)
    try:
        params = Params.model_validate(_special(content, source))
    except ValidationError as error:
        raise ParameterError(explain(error, source)) from None
    merged_methods(params, params.profile)
    return params


def load_params(profile: str | None = None, path: str | Path | None = None, **network) -> Params:
    """The project's `params.yaml`, or the file at `path`, checked; `profile` in place of the one it names,
    and `network` is said of the network of that profile.

    Raises `ParameterError`, a line or two, for slips."""
    path = Path(path) if path else project_root() / "params.yaml"
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Once)
    except FileNotFoundError:
        raise ParameterError(f"{path}: no such file") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise ParameterError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except yaml.YAMLError as error:
        raise ParameterError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if isinstance(content, dict) and isinstance(extensions := content.get("extensions", []), list):
        load_extensions(extensions, path.parent)
    if profile is not None and isinstance(content, dict):
        content["profile"] = profile
    with suppress(LookupError, TypeError, AttributeError):  # what is not there is said by the check
        content["profiles"][content["profile"]]["network"].update(network)
    return parse_params(content, path.name)
