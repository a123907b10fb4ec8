"""
From the name of a model to its place in the price table.

The rules are those of the table's source, evaluated in its order: a name resolves to what genai-prices would
find, or, where that finds nothing, by one of the few spellings listed in docs/reference/prices.md. Nothing is
guessed: a name that no rule covers is unknown.

Only the standard library is needed. The rules of a provider are read when the first name is looked up there.
"""

from __future__ import annotations

from picostep._cost import PriceTableError

TYPE_CHECKING = False  # what type checkers take for typing.TYPE_CHECKING; the host need not load typing
if TYPE_CHECKING:
    import re
    from collections.abc import Iterator
    from typing import NoReturn

__all__ = ["ALIASES", "NO_MODEL", "NO_PROVIDER", "Resolver"]

NO_MODEL = -1
NO_PROVIDER = -2

# Spellings of providers that the source does not know, and what stands before the slash of a name in
# LiteLLM, OpenTelemetry and the Vercel AI SDK. Whole names only.
ALIASES = {
    "azure-ai": "azure",
    "azure.ai.inference": "azure",
    "azure_ai": "azure",
    "azure_openai": "openai",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "aws.bedrock": "aws",
    "amazon-bedrock": "aws",
    "amazon_bedrock": "aws",
    "cohere_chat": "cohere",
    "codestral": "mistral",
    "text-completion-codestral": "mistral",
    "mistral_ai": "mistral",
    "fireworks-ai": "fireworks",
    "fireworks_ai": "fireworks",
    "gcp.gemini": "google",
    "gcp.gen_ai": "google",
    "gcp.vertex_ai": "google",
    "gemini": "google",
    "google-vertex": "google",
    "vertex": "google",
    "vertex_ai": "google",
    "vertex_ai_beta": "google",
    "github_copilot": "github-copilot",
    "moonshot": "moonshotai",
    "text-completion-openai": "openai",
    "together-ai": "together",
    "together_ai": "together",
    "togetherai": "together",
    "voyage": "voyageai",
    "x_ai": "x-ai",
    "xai": "x-ai",
    "z-ai": "zai",
    "z.ai": "zai",
}

# `[geography.]vendor.model`: how Bedrock names models and inference profiles.
_BEDROCK_GEOGRAPHIES = ("global", "us", "eu", "apac", "au", "jp", "ca", "in", "us-gov")
_BEDROCK_VENDORS = (
    "ai21",
    "amazon",
    "anthropic",
    "cohere",
    "deepseek",
    "google",
    "meta",
    "mistral",
    "moonshotai",
    "nvidia",
    "openai",
    "qwen",
    "zai",
)


class _Provider:
    """The rules of one provider, in the source's order."""

    __slots__ = ("_lines", "_models", "base", "count", "fallbacks", "id", "model_match", "provider_match")

    def __init__(self, block: str) -> None:
        head, *lines = block.split("\n")
        try:
            self.id, base, provider_match, model_match, fallbacks = head.split("\t")
            self.base = int(base)
            self.fallbacks = [
                (name, int(at)) for name, _, at in (f.partition(":") for f in fallbacks.split())
            ]
        except ValueError:
            _damaged(f"a provider begins with {head[:80]!r}")
        self.count = len(lines)
        self.provider_match = _clause(provider_match) if provider_match else None
        self.model_match = _clause(model_match) if model_match else None
        self._lines = lines
        self._models: tuple[dict[str, int], list[tuple[int, _Clause]], list[str]] | None = None

    def models(self) -> tuple[dict[str, int], list[tuple[int, _Clause]], list[str]]:
        """Return the first model of each literal name, the other rules in order, and the ids."""
        if self._models is None:
            exact: dict[str, int] = {}
            rules: list[tuple[int, _Clause]] = []
            ids: list[str] = []
            for i, line in enumerate(self._lines):
                name, tab, encoded = line.partition("\t")
                if not tab:
                    _damaged(f"a model of {self.id} without a rule")
                ids.append(name)
                for clause in _alternatives(encoded):
                    if clause[0] == "=":
                        exact.setdefault(str(clause[1]), i)
                    else:
                        rules.append((i, clause))
            self._models = exact, rules, ids
        return self._models

    def find(self, ref: str) -> int:
        """Return the first model, counted within this provider, whose rule matches; -1 if none does."""
        exact, rules, _ = self.models()
        found = exact.get(ref, -1)
        for i, clause in rules:
            if 0 <= found <= i:
                break
            if _matches(clause, ref):
                return i
        return found


class Resolver:
    """
    Names of models and providers.

    Args:
        data: The names of a price table: records separated by 0x1E. The first is its head; each further one
            is a provider, with a line for itself and a line for each of its models.

        free: A byte for each model of the table: 1 if the source lists it without any price.

    Raises:
        PriceTableError: The names cannot be read, or do not belong to that many models.
    """

    def __init__(self, data: bytes, free: bytes) -> None:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            _damaged("not UTF-8")
        self._providers = [_Provider(block) for block in text.split("\x1e")[1:]]
        self._by_id: dict[str, _Provider] = {}
        for provider in self._providers:
            self._by_id.setdefault(provider.id, provider)
        ranges: list[tuple[int, int, _Provider, _Provider]] = []
        for provider in self._providers:
            ranges.append((provider.base, provider.count, provider, provider))
            for name, base in provider.fallbacks:
                other = self._by_id.get(name)
                if other is None:
                    _damaged(f"{provider.id} falls back to {name}, which is not there")
                ranges.append((base, other.count, provider, other))
        ranges.sort(key=lambda entry: entry[0])
        end = 0
        for base, count, provider, _ in ranges:
            if base != end:
                _damaged(f"the models of {provider.id} begin at {base}, not {end}")
            end += count
        if end != len(free):
            _damaged(f"{end} names for {len(free)} models")
        self._ranges = ranges
        self._free = free

    def check(self) -> None:
        """
        Read all rules.

        Raises:
            PriceTableError: One of them cannot be read.
        """
        for provider in self._providers:
            _, rules, _ = provider.models()
            for clause in (provider.provider_match, provider.model_match, *(clause for _, clause in rules)):
                if clause is not None:
                    _compile(clause)

    def name(self, index: int) -> tuple[str, str, str]:
        """Return `(provider, model, via)`: who serves it, its id, and the provider whose price is used."""
        for base, count, provider, via in self._ranges:
            if base <= index < base + count:
                return provider.id, via.models()[2][index - base], via.id
        raise IndexError(index)

    def resolve(self, model: str, provider: str | None) -> int:
        """
        Find a model.

        Args:
            model: The name of the model, in any case.

            provider: Who serves it; None if only the name can say so.

        Returns:
            The index of the model, `NO_MODEL`, or `NO_PROVIDER`.
        """
        ref = model.lower()
        if provider is None:
            return self._bare(ref)
        if provider.lower() == "litellm":
            head, slash, rest = ref.partition("/")
            found = self._provider(head) if slash and head else None
            return self._at(found, rest) if found is not None else self._bare(ref)
        found = self._provider(provider) or self._by_id.get(ALIASES.get(provider.lower().strip(), ""))
        if found is None:
            return NO_PROVIDER
        return self._at(found, ref)

    def _provider(self, name: str) -> _Provider | None:
        """Find a provider as the source does: by its id, else by the first rule that matches."""
        name = name.lower().strip()
        if name in self._by_id:
            return self._by_id[name]
        for provider in self._providers:
            if provider.provider_match is not None and _matches(provider.provider_match, name):
                return provider
        return None

    def _find(self, provider: _Provider, ref: str) -> int:
        """Find a model of a provider, or of those it falls back to, as the source does."""
        found = self._match(provider, ref)
        if found < 0:
            dashed = _dashed(ref)
            if dashed != ref:
                found = self._match(provider, dashed)
        return found

    def _match(self, provider: _Provider, ref: str) -> int:
        found = provider.find(ref)
        if found >= 0:
            return provider.base + found
        for name, base in provider.fallbacks:
            found = self._by_id[name].find(ref)
            if found >= 0:
                return base + found
        return NO_MODEL

    def _at(self, provider: _Provider, ref: str) -> int:
        """Find a model of a known provider: by its rules, else by a spelling of the same name."""
        found = self._find(provider, ref)
        if found < 0:
            for spelling in self._spellings(provider, ref):
                found = self._find(provider, spelling)
                if found >= 0:
                    break
        return found

    def _bare(self, ref: str) -> int:
        """
        Find a model without being told the provider.

        What the source itself does not find is never taken from a free row: the name of a model that
        somebody serves for nothing is also the name under which everybody else serves it.
        """
        head, slash, rest = ref.partition("/")
        named = self._prefix(head) if slash else None
        if named is not None:
            found = self._at(named, rest)
            if found >= 0 and not self._free[found]:
                return found
        owner = self._owner(ref)
        if owner is not None:
            found = self._find(owner, ref)
            if found >= 0:
                return found
        for provider in (self._by_id.get(_provider_by_shape(ref)), owner):
            if provider is not None:
                found = self._at(provider, ref)
                if found >= 0 and not self._free[found]:
                    return found
        return NO_MODEL

    def _owner(self, ref: str) -> _Provider | None:
        """Find the provider to which a bare name belongs by the source's rules."""
        if ref:
            for provider in self._providers:
                if provider.model_match is not None and _matches(provider.model_match, ref):
                    return provider
        return None

    def _prefix(self, head: str) -> _Provider | None:
        """Find the provider that stands before the slash: an id or an alias. Rules could guess."""
        return self._by_id.get(head) or self._by_id.get(ALIASES.get(head, ""))

    def _spellings(self, provider: _Provider, ref: str) -> Iterator[str]:
        """Yield other names under which the provider may list what it serves by this name."""
        head, slash, rest = ref.partition("/")
        if slash and self._prefix(head) is provider:
            yield rest
            ref = rest
        if provider.id == "aws":
            yield from _bedrock(ref)
        elif provider.id == "azure":
            for deployment in ("global/", "global-standard/"):
                if ref.startswith(deployment):
                    yield ref[len(deployment) :]
        elif provider.id == "google":
            name = _vertex(ref)
            if name != ref:
                yield name
            yield from _versions(name)
        elif provider.id == "anthropic":
            yield from _versions(ref)


# --- spellings --------------------------------------------------------------------------------------------


def _provider_by_shape(ref: str) -> str:
    """Tell from the form of a name which API it belongs to; "" if it could be any."""
    if ref.startswith("ft:"):
        return "openai"
    if ref.startswith(("models/", "publishers/", "projects/")):
        return "google"
    if ref.startswith(("arn:aws:bedrock:", "arn:aws-us-gov:bedrock:")):
        return "aws"
    vendor, _, rest = ref.partition(".")
    if vendor in _BEDROCK_GEOGRAPHIES:
        vendor = rest.partition(".")[0]
    return "aws" if vendor in _BEDROCK_VENDORS else ""


def _bedrock(ref: str) -> Iterator[str]:
    """Take the model out of an ARN, or out of LiteLLM's `region/route/model`."""
    if ref.startswith("arn:"):
        # arn:partition:bedrock:region:account:kind/model. Other kinds are named by whoever made them.
        kind, slash, name = ref.split(":", 5)[-1].partition("/")
        if slash and kind in ("foundation-model", "inference-profile"):
            yield name
        return
    *way, name = ref.split("/")
    if way and all(part in ("converse", "invoke") or _is_region(part) for part in way):
        yield name


def _is_region(text: str) -> bool:
    """Whether it is an AWS region like us-east-1. Not the government's, which have prices of their own."""
    parts = text.split("-")
    if len(parts) != 3:
        return False
    country, place, number = parts
    return len(country) == 2 and country.isalpha() and place.isalpha() and number.isdigit()


def _vertex(ref: str) -> str:
    """Take the model out of a resource name: `models/M`, `[projects/…/]publishers/P/models/M`."""
    if ref.startswith("models/"):
        return ref[len("models/") :]
    if ref.startswith(("projects/", "publishers/")):
        return ref.rpartition("/models/")[2]
    return ref


def _versions(ref: str) -> Iterator[str]:
    """Write `model@20250929` as `model-20250929`, and leave out `@default` and `@latest`."""
    name, at, version = ref.rpartition("@")
    if at and name:
        if version in ("default", "latest"):
            yield name
        elif len(version) == 8 and version.isascii() and version.isdigit():
            yield f"{name}-{version}"


_compact_date: re.Pattern[str] | None = None


def _dashed(ref: str) -> str:
    """Write `-20251211` as `-2025-12-11`, where it is a date."""
    if "-20" not in ref:
        return ref
    global _compact_date
    if _compact_date is None:
        import re

        _compact_date = re.compile(r"-(20\d{2})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")
    return _compact_date.sub(_with_dashes, ref)


def _with_dashes(match: re.Match[str]) -> str:
    year, month, day = (int(group) for group in match.groups())
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    days = 29 if month == 2 and leap else 28 if month == 2 else 30 if month in (4, 6, 9, 11) else 31
    return f"-{year:04d}-{month:02d}-{day:02d}" if day <= days else match.group(0)


# --- rules ------------------------------------------------------------------------------------------------
#
# A rule is a kind and its argument: "=" equals, "^" starts with, "$" ends with, "*" contains, "~" a regular
# expression, "|" any of, "&" all of. In the file the parts are separated by 0x1F; "|" and "&" are followed by
# the number of rules they join.

if TYPE_CHECKING:
    _Clause = tuple[str, "str | list[_Clause]"]

_patterns: dict[str, re.Pattern[str]] = {}


def _matches(clause: _Clause, text: str) -> bool:
    kind, argument = clause
    if isinstance(argument, list):
        if kind == "|":
            return any(_matches(part, text) for part in argument)
        return all(_matches(part, text) for part in argument)
    if kind == "=":
        return text == argument
    if kind == "^":
        return text.startswith(argument)
    if kind == "$":
        return text.endswith(argument)
    if kind == "*":
        return argument in text
    return _pattern(argument).search(text) is not None


def _pattern(text: str) -> re.Pattern[str]:
    pattern = _patterns.get(text)
    if pattern is None:
        import re

        try:
            pattern = re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            _damaged(f"the regular expression {text[:80]!r}: {error}")
        if len(_patterns) < 1000:
            _patterns[text] = pattern
    return pattern


def _compile(clause: _Clause) -> None:
    kind, argument = clause
    if isinstance(argument, list):
        for part in argument:
            _compile(part)
    elif kind == "~":
        _pattern(argument)


def _clause(encoded: str) -> _Clause:
    """Read a rule."""
    parts = encoded.split("\x1f")
    clause, end = _read(parts, 0, 0)
    if end != len(parts):
        _damaged(f"the rule {encoded[:80]!r}")
    return clause


def _read(parts: list[str], at: int, depth: int) -> tuple[_Clause, int]:
    if at >= len(parts) or depth > 20:
        _damaged("a rule that does not end")
    kind, argument = parts[at][:1], parts[at][1:]
    at += 1
    if kind in ("|", "&"):
        if not argument.isdecimal() or len(argument) > 6:
            _damaged(f"a rule with {argument[:80]!r} parts")
        joined: list[_Clause] = []
        for _ in range(int(argument)):
            clause, at = _read(parts, at, depth + 1)
            joined.append(clause)
        return (kind, joined), at
    if kind not in ("=", "^", "$", "*", "~"):
        _damaged(f"a rule of kind {kind!r}")
    return (kind, argument), at


def _alternatives(encoded: str) -> list[_Clause]:
    """Read a rule; an "any of" at its top comes back as its parts."""
    if encoded[:1] == "=" and "\x1f" not in encoded:  # most are
        return [("=", encoded[1:])]
    clause = _clause(encoded)
    if clause[0] == "|" and isinstance(clause[1], list):
        return clause[1]
    return [clause]


def _damaged(what: str) -> NoReturn:
    raise PriceTableError(f"price table: names: {what}")
