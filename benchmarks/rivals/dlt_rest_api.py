"""dlt: its rest_api source, a resource an account, into JSONL files."""

from __future__ import annotations

import os

import dlt
from dlt.sources.rest_api import rest_api_source
from measured import Spec, measure


def run(spec: Spec) -> None:
    os.environ["DATA_WRITER__DISABLE_COMPRESSION"] = "true"
    os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
    base = spec["base"]
    source = rest_api_source(
        {
            "client": {"base_url": spec["urls"][0].rsplit("/", 1)[0]},
            "resources": [
                {
                    "name": f"reports_{n}",
                    "endpoint": {
                        "path": f"{url.rsplit('/', 1)[1]}/sms/1/reports",
                        "params": {"limit": 1000},
                        "data_selector": "results",
                        "paginator": {"type": "page_number", "base_page": 1, "total_path": None},
                    },
                }
                for n, url in enumerate(spec["urls"])
            ],
        }
    )
    pipeline = dlt.pipeline(
        pipeline_name="reports",
        pipelines_dir=f"{base}/pipelines",
        destination=dlt.destinations.filesystem(bucket_url=f"file://{base}/out"),
        dataset_name="reports",
    )
    pipeline.run(source, loader_file_format="jsonl")


measure(run)
