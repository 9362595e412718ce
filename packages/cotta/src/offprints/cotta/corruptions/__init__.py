"""Common corruptions of images, made here instead of downloaded, and streams of them (section 4.1 of the paper)."""

from offprints.cotta.corruptions.streams import (
    CORRUPTIONS,
    VALIDATION_CORRUPTIONS,
    CorruptionStream,
    StreamBatch,
    corrupt,
    severity_schedule,
)

__all__ = ["CORRUPTIONS", "VALIDATION_CORRUPTIONS", "CorruptionStream", "StreamBatch", "corrupt", "severity_schedule"]
