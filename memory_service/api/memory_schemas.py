"""Bodies of the memory routes."""

from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from memory_service.domain.records import Receipt, Removal

MOST_TURNS = 2_000
DIGEST = "9f2c41d07c5e8b36"

VersionNumber = Annotated[int, Field(ge=1, le=2**31 - 1)]


class Documented(BaseModel):
    """A body that the OpenAPI document shows an example of."""

    @classmethod
    def example(cls) -> dict[str, Any]:
        """The first example."""
        extra = cls.model_config.get("json_schema_extra")
        examples = extra["examples"] if isinstance(extra, dict) else None
        if not isinstance(examples, list) or not isinstance(examples[0], dict):
            raise TypeError(f"{cls.__name__} has no example")
        return examples[0]


def shown(**example: Any) -> ConfigDict:
    """The configuration of a body with an example."""
    return ConfigDict(json_schema_extra={"examples": [example]})


# What is sent


class TurnBody(BaseModel):
    """A turn to append; only the text is required. The same id and text again changes nothing."""

    text: str
    role: str = Field(default="user", description="user or assistant")
    session: str = "default"
    time: str | None = Field(default=None, description="ISO 8601; now where it is not given")
    id: str | None = Field(default=None, description="made where it is not given")
    expires_at: str | None = Field(
        default=None,
        description="ISO 8601; forgotten from then on. By the tenant's rule where it is not given",
    )


class TurnsBody(BaseModel):
    """Turns to append, all or none."""

    model_config = shown(
        turns=[{"text": "My dog is called Biscuit.", "session": "monday", "id": "m1"}]
    )

    turns: list[TurnBody] = Field(min_length=1, max_length=MOST_TURNS)


class EditBody(BaseModel):
    """What a turn says instead; the new text has an id of its own."""

    model_config = shown(text="My dog is called Bacon.")

    text: str
    new_id: str | None = Field(default=None, description="made where it is not given")


class ForgetBody(BaseModel):
    """Which turns are meant: those that all that is given is true of. `until` is not included."""

    model_config = shown(session="monday", since="2026-03-01T00:00:00Z")

    turn_ids: list[str] = Field(default_factory=list, max_length=MOST_TURNS)
    matching: str | None = Field(default=None, max_length=2_000, description="words, as in search")
    session: str | None = None
    since: str | None = Field(default=None, description="ISO 8601")
    until: str | None = Field(default=None, description="ISO 8601")


class KeepBody(BaseModel):
    """Until when turns are kept; null leaves that to the tenant's rule."""

    model_config = shown(turn_ids=["m1"], until="2027-03-01T00:00:00Z")

    turn_ids: list[str] = Field(min_length=1, max_length=MOST_TURNS)
    until: str | None = Field(description="ISO 8601")


class KeptUntilBody(Documented):
    """Turns and the date from which on they are forgotten."""

    model_config = shown(user="ana", turn_ids=["m1"], expires_at="2027-03-01T00:00:00Z")

    user: str
    turn_ids: list[str]
    expires_at: AwareDatetime | None


class RollbackBody(BaseModel):
    """To a version, or to what was said until a time: one of the two."""

    model_config = shown(version=3)

    version: VersionNumber | None = None
    as_of: str | None = Field(default=None, description="ISO 8601, that moment included")


class MergeBody(BaseModel):
    """Whose memory is added."""

    model_config = shown(other="ana-phone")

    other: str


class MergedBody(Documented):
    """What a merge did: the other's turns, and turns erased because the other forgot them."""

    model_config = shown(user="ana", new=12, known=3, forgotten=0, erased=0, version=7)

    user: str
    new: int
    known: int
    forgotten: int
    erased: int
    version: int


class AskBody(BaseModel):
    """A question about the user."""

    model_config = shown(question="What is my dog called?")

    question: str = Field(min_length=1)
    version: VersionNumber | None = Field(default=None, description="the newest where not given")
    max_tokens: int = Field(default=64, ge=1, le=2**31 - 1)


# What comes back


class UserBody(Documented):
    """Where a user's memory stands; `version` is 0 before anything was encoded."""

    user: str
    version: int
    turns: int
    pending_turns: int
    quarantined_turns: int
    created_at: AwareDatetime


class UsersPage(BaseModel):
    """Users by name; the next page begins `after` `next`."""

    data: list[UserBody]
    next: str | None


class OverviewBody(UserBody):
    """A user's memory in numbers."""

    model_config = shown(
        user="ana",
        version=3,
        turns=12,
        pending_turns=0,
        quarantined_turns=0,
        created_at="2026-03-01T18:30:00Z",
        sessions=2,
        chunks=2,
        text_chars=840,
        state_bytes=12_582_912,
        adapters_bytes=3_145_728,
    )

    sessions: int
    chunks: int
    text_chars: int
    state_bytes: int
    adapters_bytes: int


class KeptTurnBody(Documented):
    """A turn. Pending ones are not in the adapter yet, quarantined ones cannot be encoded.

    A rollback sets turns aside.
    """

    model_config = shown(
        id="m1",
        session="monday",
        role="user",
        time="2026-03-01T18:30:00Z",
        text="My dog is called Biscuit.",
        expires_at=None,
        pending=False,
        set_aside=False,
        quarantined=False,
    )

    id: str
    session: str
    role: str
    time: AwareDatetime
    text: str
    expires_at: AwareDatetime | None
    pending: bool
    set_aside: bool
    quarantined: bool


class TurnsPage(BaseModel):
    """Turns in the order said, the newest page first; the page `before` it begins at `next`."""

    data: list[KeptTurnBody]
    next: str | None


class FoundTurnsPage(BaseModel):
    """Turns that hold the words, the newest first; the page after it is `before` `next`."""

    data: list[KeptTurnBody]
    next: str | None


class AppendedBody(Documented):
    """What became of the turns; `forgotten` ones were taken back earlier and stay forgotten."""

    model_config = shown(user="ana", new=1, known=0, forgotten=0, ids=["m1"])

    user: str
    new: int
    known: int
    forgotten: int
    ids: list[str]


class SessionBody(BaseModel):
    """A session; `turns` counts those not set aside, `pending` says that some wait for encoding."""

    session: str
    turns: int
    pending: bool
    first_at: AwareDatetime
    last_at: AwareDatetime


class SessionsPage(BaseModel):
    """Sessions by name; the next page begins `after` `next`."""

    data: list[SessionBody]
    next: str | None


class AdapterBody(BaseModel):
    """A version of the adapter; no digest where turns it held were forgotten since."""

    version: int
    reason: str
    created_at: AwareDatetime
    fingerprint: str
    state_digest: str | None
    chunks: int
    turns: int
    size_bytes: int


class AdaptersPage(BaseModel):
    """Versions, newest first; the next page begins `before` `next`."""

    data: list[AdapterBody]
    next: int | None


class ChunkBody(BaseModel):
    """A chunk; digests are empty where a turn of it was forgotten since."""

    session: str
    digest: str
    update_digest: str
    turn_ids: list[str]
    tokens: int


class RecipeBody(AdapterBody):
    """A version, and the chunks that it was made from."""

    recipe: list[ChunkBody]


class ChangedAdapterBody(AdapterBody):
    """A version, and how many turns it has that the one before had not, and the other way round."""

    added: int
    removed: int


class HistoryPage(BaseModel):
    """Versions and what each changed, newest first; the next page begins `before` `next`."""

    data: list[ChangedAdapterBody]
    next: int | None


class ModuleBody(BaseModel):
    """One adapted module."""

    layer: int
    module: str
    value: float


class DistanceBody(BaseModel):
    """How strongly the difference of two adapters changes each module."""

    unit: str
    modules: list[ModuleBody]


class DifferenceBody(Documented):
    """What the second version was made from and the first was not, and the other way round.

    No distance where a read-out is no longer kept or other parts made it.
    """

    model_config = shown(
        versions=[2, 3],
        added=["m1"],
        removed=[],
        distance={"unit": "% of the module's weight norm", "modules": []},
    )

    versions: list[int]
    added: list[str]
    removed: list[str]
    distance: DistanceBody | None


class StateBody(Documented):
    """The state of the newest version. Its digest says that two memories are equal to the bit."""

    model_config = shown(
        version=3,
        digest=DIGEST * 4,
        fingerprint={"digest": DIGEST * 4, "encoding": "independent"},
        size_bytes=12_582_912,
        chunks=2,
        turns=12,
    )

    version: int
    digest: str
    fingerprint: dict[str, str]
    size_bytes: int
    chunks: int
    turns: int


class ErasedBody(BaseModel):
    """Rows that went, and versions whose recipes were rewritten without them."""

    turns: int
    sessions: int
    rewritten_versions: int
    adapters: int


class ReceiptBody(Documented):
    """What went, how, and which state remains; neither version nor digest while none is encoded."""

    model_config = shown(
        user="ana",
        erased={"turns": 1, "sessions": 0, "rewritten_versions": 3, "adapters": 2},
        removal="subtracted",
        reason="",
        version=4,
        state_digest=DIGEST * 4,
    )

    user: str
    erased: ErasedBody
    removal: Removal = Field(
        description="subtracted: exact to the last bit; rebuilt: the adapter was withdrawn and "
        "made anew from the kept turns; withdrawn: the same, and they still wait to be encoded"
    )
    reason: str = Field(description="why the state was not subtracted from")
    version: int | None
    state_digest: str | None

    @classmethod
    def of(cls, user: str, receipt: Receipt, **more: Any) -> "ReceiptBody":
        """A receipt as it is told."""
        return cls.model_validate(
            {
                "user": user,
                "erased": vars(receipt.erased),
                "removal": receipt.removal,
                "reason": receipt.reason,
                "version": receipt.version,
                "state_digest": receipt.state_digest,
                **more,
            }
        )


class EditedBody(ReceiptBody):
    """The receipt of the old text, and the id of the new one."""

    model_config = shown(**ReceiptBody.example(), id="5d3c0a8e")

    id: str


class FoundBody(BaseModel):
    """What forgetting would take: how many turns, and the first of them."""

    turns: int
    data: list[KeptTurnBody]


class DeletedBody(Documented):
    """How many rows of each kind went."""

    model_config = shown(user="ana", deleted={"turns": 12, "sessions": 2, "chunks": 2})

    user: str
    deleted: dict[str, int]


class ReplyBody(Documented):
    """The memory's answer.

    `confidence` is the geometric mean of the answer's token probabilities under the adapter:
    exp(`log_likelihood`), 0 for an empty answer. `log_likelihood_without_memory` is that of the
    same answer from the base model alone, in nats per token: where the two are close, the memory
    contributed nothing and the answer would be the same for anybody.
    """

    model_config = shown(
        user="ana",
        answer="Biscuit",
        confidence=0.74,
        log_likelihood=-0.3,
        log_likelihood_without_memory=-6.1,
        version=3,
        prompt_tokens=18,
        completion_tokens=2,
    )

    user: str
    answer: str
    confidence: float = Field(ge=0, le=1)
    log_likelihood: float | None
    log_likelihood_without_memory: float | None
    version: int
    prompt_tokens: int
    completion_tokens: int
