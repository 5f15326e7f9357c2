"""Bodies of the routes that look inside a memory."""

from pydantic import AwareDatetime, BaseModel, Field

from memory_service.api.memory_schemas import (
    DIGEST,
    Documented,
    ModuleBody,
    OverviewBody,
    SessionBody,
    shown,
)


class WhyBody(BaseModel):
    """A question, and the answer to account for; the memory's own where none is given."""

    model_config = shown(question="What is my dog called?")

    question: str = Field(min_length=1)
    answer: str | None = Field(default=None, min_length=1, max_length=2_000)
    turns: int = Field(default=5, ge=1, le=100, description="how many turns are told")


class SaidBody(BaseModel):
    """A turn that tells something."""

    id: str
    session: str
    role: str
    time: AwareDatetime
    text: str


class ProfileLineBody(BaseModel):
    """One thing that the memory knows, and the turn that says so.

    `confidence` is the mean probability of the answer's tokens, `gain` what the memory adds to its
    log-likelihood in nats a token.
    """

    topic: str
    question: str
    answer: str
    confidence: float
    gain: float
    turn: SaidBody


class ProfileBody(Documented):
    """What a memory says it knows about its person, surest first."""

    model_config = shown(
        user="ana",
        lines=[
            {
                "topic": "dog",
                "question": "What is my dog's name?",
                "answer": "Your dog is called Biscuit.",
                "confidence": 0.9,
                "gain": 2.4,
                "turn": {
                    "id": "m1",
                    "session": "monday",
                    "role": "user",
                    "time": "2026-03-01T18:30:00Z",
                    "text": "My dog is called Biscuit.",
                },
            }
        ],
    )

    user: str
    lines: list[ProfileLineBody]


class QuarantinedBody(BaseModel):
    """A chunk that cannot be encoded, and why; no state holds it."""

    session: str
    chunk: str
    turn_ids: list[str]
    reason: str
    since: AwareDatetime


class QuarantineBody(Documented):
    """All of a user's chunks that cannot be encoded."""

    model_config = shown(
        data=[
            {
                "session": "monday",
                "chunk": DIGEST * 4,
                "turn_ids": ["m1"],
                "reason": "hidden states: the base model returned NaN or Inf for this chunk",
                "since": "2026-03-01T18:30:00Z",
            }
        ]
    )

    data: list[QuarantinedBody]


class RetriedBody(QuarantineBody):
    """How many chunks were tried again, the version after that, and those that failed again."""

    model_config = shown(**QuarantineBody.example(), user="ana", tried=2, version=4)

    user: str
    tried: int
    version: int


class FullnessBody(BaseModel):
    """How full the state is in each adapted module."""

    unit: str
    modules: list[ModuleBody]


class StrongBody(SaidBody):
    """A turn and its share in the adapter as a whole, whatever is asked."""

    share: float


class InspectionBody(OverviewBody):
    """What a memory is made of; no fullness before the first version or of another generator.

    `strongest` are the turns with the largest shares, as many as were asked for.
    """

    model_config = shown(
        **OverviewBody.example(),
        fingerprint={"digest": DIGEST * 4, "encoding": "independent"},
        fullness={
            "unit": "% of the directions that it can tell apart",
            "modules": [{"layer": 9, "module": "mlp.down_proj", "value": 12.5}],
        },
        by_session=[
            {
                "session": "monday",
                "turns": 12,
                "pending": False,
                "first_at": "2026-03-01T18:30:00Z",
                "last_at": "2026-03-01T18:41:00Z",
            }
        ],
        quarantined=[],
        strongest=[],
    )

    fingerprint: dict[str, str] | None
    fullness: FullnessBody | None
    by_session: list[SessionBody]
    quarantined: list[QuarantinedBody]
    strongest: list[StrongBody]


class TurnWeightBody(BaseModel):
    """A turn, and how much of the answer it carries.

    `loss` is what the answer loses in nats per token without the turn, `chunk_loss` without its
    chunk; null where that was not tried. `share` is a cheap estimate from the adapter's rows.
    """

    id: str
    session: str
    role: str
    time: AwareDatetime
    text: str
    loss: float | None
    chunk_loss: float | None
    share: float


class ReasonsBody(Documented):
    """The turns that carry an answer, most first."""

    model_config = shown(
        user="ana",
        question="What is my dog called?",
        answer="Your dog is called Biscuit.",
        version=3,
        log_likelihood=-0.2,
        log_likelihood_without_memory=-2.9,
        turns=[
            {
                "id": "m1",
                "session": "monday",
                "role": "user",
                "time": "2026-03-01T18:30:00Z",
                "text": "My dog is called Biscuit.",
                "loss": 2.4,
                "chunk_loss": 2.5,
                "share": 0.31,
            }
        ],
    )

    user: str
    question: str
    answer: str
    version: int
    log_likelihood: float
    log_likelihood_without_memory: float
    turns: list[TurnWeightBody]
