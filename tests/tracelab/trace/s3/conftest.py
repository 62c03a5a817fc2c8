import boto3
import pytest
from objectstores import Proxy, moto, s3rver, s3rver_missing, settings

BUCKET = "traces"


@pytest.fixture(scope="session")
def moto_port():
    with moto() as port:
        yield port


@pytest.fixture(scope="session")
def s3rver_port(tmp_path_factory):
    missing = s3rver_missing()
    if missing:
        pytest.skip(missing)
    with s3rver(tmp_path_factory.mktemp("s3rver")) as port:
        yield port


class Bucket:
    """A bucket of its own for one test; the environment says how to reach it."""

    def __init__(self, name, environment, patch):
        for key, value in environment.items():
            patch.setenv(key, value)
        self.name = name
        self.environment = environment
        # boto3 itself keeps the first credentials it finds.
        self.client = boto3.Session().client("s3")
        self.client.create_bucket(Bucket=name)

    def url(self, path="run.zarr"):
        return f"s3://{self.name}/{path}"

    def keys(self, prefix=""):
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.name, Prefix=prefix
        )
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def get(self, key):
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()


@pytest.fixture
def name(request):
    return f"test-{abs(hash(request.node.nodeid)):x}"


@pytest.fixture
def bucket(moto_port, name, monkeypatch):
    """Give a bucket of moto's server."""
    return Bucket(name, settings(moto_port), monkeypatch)


@pytest.fixture
def proxy(bucket, moto_port, monkeypatch):
    """Put a proxy between tracelab and moto's server; `bucket` does not go through it."""
    with Proxy(moto_port).running() as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        bucket.environment = {**bucket.environment, "AWS_ENDPOINT_URL": between.url}
        yield between


@pytest.fixture
def strict_bucket(s3rver_port, name, monkeypatch):
    """Give a bucket of s3rver, which checks signatures."""
    return Bucket(name, settings(s3rver_port, "S3RVER", "S3RVER"), monkeypatch)
