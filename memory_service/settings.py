"""Environment and `.env` -> frozen settings, read once by `bootstrap`."""

from pathlib import Path

import platformdirs
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from memory_service.errors import ConfigurationError

APP_NAME = "memory-service"


class Settings(BaseSettings):
    """`MEMORY_SERVICE_*` variables; the environment wins over `.env`."""

    model_config = SettingsConfigDict(
        env_prefix="MEMORY_SERVICE_", env_file=".env", frozen=True, extra="ignore"
    )

    database_url: SecretStr = Field(
        default_factory=lambda: SecretStr(f"sqlite:///{_data_folder() / 'memory.db'}"),
        description="SQLAlchemy URL: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME",
    )
    base_model: str = Field(
        default="smollm2-135m-instruct",
        description="Pulled name, folder in Hugging Face format, or hub id",
    )
    generator: Path | None = Field(
        default=None,
        description="Generator checkpoint: a file of `memory train`, or a folder in the authors' "
        "format; unset uses the one shipped in the package",
    )
    cache_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_cache_dir(APP_NAME)),
        description="Where base models are kept",
    )
    tenant: str = Field(default="default", description="Whose users the command line works on")
    batch_rows: int = Field(default=16, ge=1, description="Answers that are made at the same time")
    waiting_requests: int = Field(
        default=64, ge=0, description="Requests that may wait for a place; the next one is refused"
    )
    kept_tokens: int = Field(
        default=32_768,
        ge=1,
        description="Bound on keys and values: answers at the same time times the longest of them, "
        "in tokens",
    )
    deadline_s: float = Field(
        default=120.0, gt=0, description="Seconds a request may take, waiting included"
    )
    window_tokens: int = Field(
        default=1024, ge=1, description="Prompt tokens for a session's last messages in the API"
    )
    most_new_tokens: int = Field(
        default=512, ge=1, description="Longest answer where a request of the API does not say"
    )
    user_headers: str = Field(
        default="X-OpenWebUI-User-Id,X-User-Id",
        description="Headers that name the user where the field `user` does not; the first wins",
    )
    session_headers: str = Field(
        default="X-OpenWebUI-Chat-Id,X-Session-Id",
        description="Headers that name the session where `memory.session` does not",
    )
    auxiliary_pattern: str = Field(
        default=r"\A\s*### Task:\s",
        description="Requests whose last message matches are a front end's own (titles, tags): "
        "nothing is read from the memory or stored",
    )
    most_body_bytes: int = Field(
        default=4_000_000, ge=1, description="Largest request body of the API"
    )
    most_archive_bytes: int = Field(
        default=500_000_000, ge=1, description="Largest archive that the API imports"
    )
    requests_per_minute: int = Field(
        default=600, ge=0, description="Requests of one API key in a minute; 0 is no limit"
    )
    adapter_cache_mb: int = Field(
        default=256, ge=0, description="Megabytes of adapters kept in memory between requests"
    )
    engine_url: str | None = Field(
        default=None,
        pattern="^https?://",
        description="Engine elsewhere that makes the answers (vLLM), as http://HOST:8000/v1; "
        "unset answers in this process",
    )
    engine_key: SecretStr | None = Field(default=None, description="API key of that engine")
    engine_folder: Path = Field(
        default_factory=lambda: Path(platformdirs.user_cache_dir(APP_NAME)) / "engine",
        description="Where adapters are written for that engine, which must see it under the same "
        "path; of one process only",
    )
    engine_adapters: int = Field(
        default=16, ge=1, description="Adapters that engine keeps loaded at the same time"
    )
    log_format: str = Field(
        default="console", pattern="^(console|json)$", description="console or json, to stderr"
    )
    log_level: str = Field(
        default="WARNING",
        pattern="^(DEBUG|INFO|WARNING|ERROR)$",
        description="DEBUG, INFO, WARNING or ERROR",
    )


def read_settings() -> Settings:
    """Read the environment.

    Raises:
        ConfigurationError: a variable has a value that cannot be used; names it.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = "MEMORY_SERVICE_" + "_".join(str(part) for part in first["loc"]).upper()
        raise ConfigurationError(
            name, first["msg"], "correct it in the environment or .env"
        ) from None


def _data_folder() -> Path:
    return Path(platformdirs.user_data_dir(APP_NAME))
