"""Credentials come from the usual places and go nowhere else."""

import logging
import pickle

import pytest
from objectstores import Reply, settings
from traces import write_trace

import tracelab
from tracelab.errors import TracelabError, UsageError
from tracelab.trace.places import remote
from tracelab.trace.places.locations import resolve
from tracelab.trace.places.remoteclients import check_url
from tracelab.trace.places.remotefaults import redacted

SECRET = "SeCrEt-nobody-may-see"
USER = "UsEr-nobody-may-see"
REFUSED = r"leave (them|it) out and give credentials in the usual places|one plain URL"


@pytest.mark.parametrize(
    "url",
    [
        f"s3://{USER}:{SECRET}@bucket/run.zarr",
        f"s3://{USER}@bucket/run.zarr",
        f"https://{USER}:{SECRET}@example.org/run.zarr",
        f"https://{USER}:{SECRET}/x@example.org/run.zarr",
        f"https://example.org/run.zarr?X-Amz-Signature={SECRET}",
        f"s3://bucket/run.zarr?key={SECRET}",
        f"abfs://container:{SECRET}@account.dfs.core.windows.net/run.zarr",
        f"az://container/run.zarr?sig={SECRET}",
        f"simplecache::s3://{USER}:{SECRET}@bucket/run.zarr",
    ],
)
def test_a_url_with_credentials_is_refused_without_repeating_them(url):
    for act in (tracelab.open, lambda path: tracelab.create(path, {"w": (1,)}), resolve):
        with pytest.raises(UsageError, match=REFUSED) as raised:
            act(url)
        assert SECRET not in str(raised.value)
        assert USER not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://arn:aws:s3:us-east-1:123456789012:accesspoint/name/run.zarr",
        "s3://bucket/2026-01-01T10:00/run@3.zarr",
        "abfs://container@account.dfs.core.windows.net/run.zarr",
        "http://localhost:9000/run.zarr",
        "http://[::1]:9000/run.zarr",
        "gs://bucket/run.zarr",
    ],
)
def test_urls_without_credentials_are_left_alone(url):
    check_url(url)


@pytest.mark.parametrize("url", ["s3://", "s3:///", "memory://", "https://"])
def test_a_url_names_a_place(url):
    with pytest.raises(UsageError, match="names no bucket or host"):
        tracelab.open(url)


def test_an_unknown_protocol_is_a_usage_error():
    with pytest.raises(UsageError, match=r"no trace can be opened at 'nonsense://x/run\.zarr'"):
        tracelab.open("nonsense://x/run.zarr")


def test_texts_of_clients_are_cleaned():
    text = f'no answer from "http://{USER}:{SECRET}@host:9/b/k?X-Amz-Signature={SECRET}" at all'
    assert redacted(text) == 'no answer from "http://host:9/b/k" at all'


@pytest.mark.slow
def test_secrets_are_not_stored_shown_logged_or_pickled(bucket, moto_port, monkeypatch, caplog):
    for key, value in settings(moto_port, USER, SECRET).items():
        monkeypatch.setenv(key, value)
    caplog.set_level(logging.INFO)
    write_trace(bucket.url())
    trace = tracelab.open(bucket.url())
    tracelab.analyze(trace, ["noise_scale"])
    shown = [repr(trace), trace._repr_html_(), repr(trace.store), str(trace.summary()), caplog.text]
    stored = b"".join(map(bucket.get, bucket.keys())) + pickle.dumps((trace, trace.store))
    for secret in (SECRET, USER):
        assert not any(secret in text for text in shown)
        assert secret.encode() not in stored


@pytest.mark.slow
def test_secrets_are_not_in_errors(bucket, proxy, monkeypatch):
    monkeypatch.setattr(remote, "READ_PATIENCE", 0.1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", USER)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    said = Reply(400, "AuthorizationHeaderMalformed", "The authorization header is malformed.")
    proxy.fault = lambda request: said
    endpoints = [proxy.url, proxy.url.replace("//", f"//{USER}:{SECRET}@"), "http://127.0.0.1:9"]
    for endpoint in endpoints:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(TracelabError) as raised:
            tracelab.open(bucket.url())
        assert SECRET not in str(raised.value)
        assert USER not in str(raised.value)
