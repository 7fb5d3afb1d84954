"""POST /api/assets/analyze-queue: accepts a photo and answers at once.

The caller is authenticated before the body is read. Then MultipartReader streams the body into a spooled file.
submission.py does the rest. Runs on the event loop; images that are not small are checked in the thread pool.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from concurrent.futures import Executor
from contextlib import suppress
from io import BytesIO
from typing import Any, BinaryIO

from pipeline.assets.asset import Asset
from pipeline.assets.image import ImageInfo
from pipeline.assets.store import AssetStore
from pipeline.auth import Principal
from pipeline.errors import PipelineError, UnsupportedEncoding, ValidationError
from pipeline.handlers.assets import is_done
from pipeline.handlers.base import BaseHandler
from pipeline.handlers.intake import Intake, TooSlowForLoop, close
from pipeline.handlers.multipart import Form, MultipartReader, image_required, max_body_bytes, too_large
from pipeline.handlers.polling import Polling, preferred_wait
from pipeline.handlers.server import Stream
from pipeline.sandbox.cost import MAX_IMAGE_PIXELS
from pipeline.settings import Settings
from pipeline.usecases.admission import Admission
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.submission import Submission
from pipeline.usecases.upload import Upload, storable_claims
from pipeline.texts import clean
from pipeline.tracing import OFF, Tracing

CATEGORY_AS_FILE = "category came as a file: send it as a text, without a filename"
# The longest time for a body with MAX_UPLOAD_BYTES up to 10 MiB: 35 kB/s, the speed of slow mobile networks.
BODY_SECONDS = 300.0
BYTES_PER_SECOND = 35_000
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def body_seconds(max_upload_bytes: int) -> float:
    """Return the longest time that a body may take to arrive."""
    return max(BODY_SECONDS, max_upload_bytes / BYTES_PER_SECOND)


def _received_parts(form: Form) -> str:
    """Return the names of the received parts, for a client that used another name."""
    return f"these parts came: {', '.join(name or '(no name)' for name in form.came)}" if form.came else "no parts came"


class UploadHandler(BaseHandler):
    """Accepts `image` and `category` as multipart/form-data; replies 202 with assetId and jobId."""

    route = "/api/assets/analyze-queue"
    failure_message = "Failed to queue asset for processing"

    def initialize(  # type: ignore[override]
        self,
        *,
        store: AssetStore,
        submission: Submission,
        admission: Admission,
        settings: Settings,
        urls: ImageUrls,
        pool: Executor,
        tracing: Tracing = OFF,
        **common: Any,
    ) -> None:
        super().initialize(**common)
        self.polling = Polling(admission)
        self.store = store
        self.submission = submission
        self.max_upload_bytes = settings.max_upload_bytes
        self.data_dir = settings.data_dir
        self.urls = urls
        self.intake = Intake(MAX_IMAGE_PIXELS, settings.decode_memory_mb, settings.keep_metadata, settings.data_dir)
        self.categories = settings.categories
        self.pool = pool
        self.tracing = tracing
        self._reader: MultipartReader | None = None
        self._stored: BinaryIO | None = None  # the cleaned file, from Intake
        self._is_body_read = False
        self.connection.set_body_timeout(body_seconds(settings.max_upload_bytes))

    async def prepare(self) -> None:
        if self.request.method != "POST":
            super().prepare()
            return
        try:
            super().prepare()
            await self.authenticate()
            self._allow_half_close(not preferred_wait(self.request.headers.get("Prefer", "")))
            self._check_headers()
            await self.submission.admit(self.principal.user_id, self.request.headers.get("Idempotency-Key"))
            content_type = self.request.headers.get("Content-Type", "")
            self._reader = MultipartReader(
                content_type, wanted=("category",), max_image_bytes=self.max_upload_bytes, folder=self.data_dir
            )
        except PipelineError as error:
            self.refuse_early(error)

    def count_request(self, caller: Principal) -> None:
        """Count an upload, also one that is refused later or is a repeat: its body is read."""
        self.limits.upload(caller.user_id)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        if self._reader is None or self.is_refused:
            return super().data_received(chunk)
        try:
            self._reader.feed(chunk)
        except Exception as error:  # broad: a full disk must become a reply too
            self._reader.close()
            self.refuse(error, is_body_begun=True)
        return None

    async def post(self) -> None:
        if self.ends_early():
            return
        assert self._reader is not None
        self._is_body_read = True
        with self.tracing.request(self):
            seconds = preferred_wait(self.request.headers.get("Prefer", ""))
            try:
                receipt = await self.submission.submit(await self._check(self._reader.finish()))
                self.add_log_fields(assetId=receipt.asset_id, jobId=receipt.job_id)
                answer = {"assetId": receipt.asset_id, "jobId": receipt.job_id}
                answer |= {"status": "processing", "message": "Asset queued for AI analysis"}
                self._set_quota_headers()
                if not seconds:
                    # Before the files are closed: a shutdown waits for submissions, not for files.
                    self.reply(answer, status=202)
            finally:
                if self._reader.is_spooled:
                    # In a thread: closing a file of ten megabytes takes milliseconds.
                    await asyncio.get_running_loop().run_in_executor(self.pool, self._close_files)
                else:
                    self._close_files()
            if seconds:
                self.set_header("Preference-Applied", f"wait={seconds}")
                self.reply(answer | await self._asset_if_done(receipt.asset_id, seconds), status=202)

    def _set_quota_headers(self) -> None:
        """Send how many bytes the user has stored, and the quota, if there is one."""
        quota = self.submission.quota
        if (used := quota.known_bytes(self.principal.user_id)) is not None:
            self.set_header("X-Stored-Bytes", str(used))
            self.set_header("X-Stored-Bytes-Limit", str(quota.most_bytes))

    async def _asset_if_done(self, asset_id: str, seconds: int) -> dict[str, Any]:
        """Return the asset as a field of the reply if it is finished in time, else no field."""
        user_id = self.principal.user_id

        async def read() -> Asset | None:
            return await self.store.get(asset_id)

        def is_enough(asset: Asset | None) -> bool:
            return asset is None or is_done(asset)

        try:
            asset = await self.polling.until(read, is_enough, user_id=user_id, seconds=seconds, asset_id=asset_id)
        except PipelineError:
            return {}  # the upload is accepted anyway; the client asks for the asset later
        if asset is None or not is_done(asset):
            return {}
        return {"asset": asset.to_json(await self.urls.of([asset]))}

    async def _check(self, form: Form) -> Upload:
        """Return the upload in the form; ValidationError names all faults that show before the image is opened."""
        faults = []
        if form.image is None:
            faults.append(image_required("body", form.image_fault or _received_parts(form)))
        category = form.fields.get("category", "")
        if category not in self.categories:
            detail = f"Must be one of: {', '.join(self.categories)}"
            as_file = CATEGORY_AS_FILE if "category" in form.as_files else ""
            faults.append(ValidationError.of("category", detail, "Invalid category").also("body", as_file))
        if faults or form.image is None:
            raise ValidationError(faults[0].message, details=[d for fault in faults for d in fault.details or ()])
        stored, image, sha256 = await self._accept(form.image)
        self._stored = stored
        return Upload(
            user_id=self.principal.user_id,
            category=category,
            file=stored,
            sent=form.image,
            image=image,
            sha256=sha256,
            request_id=self.request_id,
            idempotency_key=self.request.headers.get("Idempotency-Key"),
            claims=storable_claims(self.principal.claims),
        )

    async def _accept(self, image: BinaryIO) -> tuple[BinaryIO, ImageInfo, str]:
        """Return the result of Intake.accept."""
        if isinstance(image, BytesIO):
            with suppress(TooSlowForLoop):
                return self.intake.accept_quickly(image)
        return await asyncio.get_running_loop().run_in_executor(self.pool, self.intake.accept, image)

    def _close_files(self) -> None:
        """Close the files of the image."""
        if self._reader is not None:
            self._reader.close()
        if self._stored is not None:
            close(self._stored)

    def _check_headers(self) -> None:
        key = self.request.headers.get("Idempotency-Key")
        if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
            raise ValidationError.of("Idempotency-Key", "Must be 1 to 255 visible ASCII characters")
        encoding = self.request.headers.get("Content-Encoding", "identity").strip()
        if encoding.lower() not in ("identity", ""):
            detail = f"{clean(encoding)[:40]} is not supported: send the form uncompressed"
            raise UnsupportedEncoding.of("Content-Encoding", detail, "Content-Encoding is not supported")
        length = self.request.headers.get("Content-Length", "0")
        if int(length) > max_body_bytes(self.max_upload_bytes):
            raise too_large(self.max_upload_bytes)

    def on_connection_close(self) -> None:
        self.polling.abandon()
        # After the body the photo is accepted, even if the client has disconnected.
        if self._reader is not None and not self._is_body_read:
            self._reader.close()
        super().on_connection_close()

    def _allow_half_close(self, is_allowed: bool) -> None:
        """Say whether a client that has closed its sending side still gets an answer, see Stream."""
        if isinstance(self.connection.stream, Stream):
            self.connection.stream.answers_half_closed = is_allowed

    def on_finish(self) -> None:
        super().on_finish()
        self._allow_half_close(False)
        if self.request.method == "POST" and self.get_status() >= 400:
            self.metrics.uploads.labels("rejected" if self.get_status() < 500 else "unavailable").inc()
