import contextlib
import json
import logging
import time

import pytest
from fastapi.testclient import TestClient

from ltrec_jax.errors import UserError
from ltrec_jax.serve.guard import LOG, Limits
from ltrec_jax.serve.http import make_app
from ltrec_jax.serve.journal import Journal
from ltrec_jax.serve.service import Query, Service


@contextlib.contextmanager
def running(bundle, path=None, **options):
    with TestClient(make_app(lambda: Service(bundle, journal=Journal(path)), **options)) as client:
        headers = {"Authorization": f"Bearer {options['token']}"} if "token" in options else {}
        for _ in range(600):
            if client.get("/v1/ready", headers=headers).status_code == 200:
                break
            time.sleep(0.05)
        yield client


@pytest.fixture(scope="module")
def client(bundle):
    with running(bundle) as client:
        yield client


def test_recommendations_are_the_services(client, service):
    answer = client.post("/v1/recommend", json={"user": "u7", "k": 5})
    assert answer.status_code == 200
    expected = service.recommend([Query(user="u7", k=5)])[0]
    assert [one["item_id"] for one in answer.json()["items"]] == [one.item_id for one in expected]
    assert [one["score"] for one in answer.json()["items"]] == [one.score for one in expected]
    batch = client.post("/v1/recommend/batch", json={"requests": [{"user": "u7", "k": 5}, {"liked": ["i1"], "k": 3}]})
    assert batch.json()["answers"][0] == answer.json()
    assert len(batch.json()["answers"][1]["items"]) == 3


def test_search_and_likeness(client):
    assert len(client.post("/v1/search", json={"text": "the comet", "k": 4}).json()["items"]) == 4
    assert len(client.post("/v1/similar", json={"item": "i1", "k": 4}).json()["items"]) == 4


def test_an_item_and_feedback_come_and_go(client):
    odd = client.put("/v1/items/a%20b%2Fc", json={"text": "the comet orbit"})
    assert odd.json()["item_id"] == "a b/c"
    assert client.delete("/v1/items/a%20b%2Fc").status_code == 200
    put = client.put("/v1/items/fresh", json={"text": "the comet orbit", "attributes": {"title": "comet"}})
    assert put.json() == {"item_id": "fresh", "created": True, "group": "new", "truncated": False}
    listed = client.post("/v1/recommend", json={"user": "visitor", "k": 5})
    assert listed.status_code == 404
    assert client.post("/v1/feedback", json={"user": "visitor", "item": "fresh", "rating": 5}).json() == {"saved": True}
    listed = client.post("/v1/recommend", json={"user": "visitor", "k": 200}).json()["items"]
    assert "fresh" not in [one["item_id"] for one in listed]
    assert client.delete("/v1/items/fresh").json() == {"saved": True}
    assert client.delete("/v1/items/fresh").status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/recommend", {"user": "u7", "colour": 1}, 422),
        ("/v1/recommend", {"user": 7}, 422),
        ("/v1/recommend", {}, 422),
        ("/v1/recommend", {"user": "u7", "liked": ["i1"]}, 422),
        ("/v1/recommend", {"user": "u7", "k": 0}, 422),
        ("/v1/recommend", {"user": "u7", "k": 10**9}, 422),
        ("/v1/recommend", {"user": "u7", "tail": 2}, 422),
        ("/v1/recommend", {"user": "u7", "cold_gain": 11}, 422),
        ("/v1/recommend", {"user": "u7", "cold_gain": 2}, 422),
        ("/v1/recommend", {"user": "nobody"}, 404),
        ("/v1/recommend", {"liked": ["nothing"]}, 404),
        ("/v1/recommend", {"user": "u7", "filters": {"colour": ["red"]}}, 422),
        ("/v1/recommend", {"rated": {"i1": 99.0}}, 422),
        ("/v1/recommend", {"text": "x" * 10_001}, 422),
        ("/v1/recommend", {"user": "u\ud800"}, 422),
        ("/v1/recommend/batch", {"requests": []}, 422),
        ("/v1/similar", {"item": "nothing"}, 404),
        ("/v1/search", {"text": ""}, 422),
        ("/v1/feedback", {"user": "u7", "item": "i1"}, 422),
        ("/v1/feedback", {"user": "u7", "item": "i1", "rating": 99.0}, 422),
        ("/v1/feedback", {"user": "u7", "item": "nothing", "rating": 5.0}, 404),
    ],
)
def test_bad_requests_say_what_to_do(client, path, body, status):
    answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "request_id", "fields"}
    assert answer.json()["error"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "body", ["{", "[]", "null", '{"user": NaN}', '{"rated": {"i1": NaN}}', '{"tail": Infinity}', "\xff"]
)
def test_what_is_not_json_is_refused(client, body):
    answer = client.post("/v1/recommend", content=body.encode("latin-1"), headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]
    plain = client.post("/v1/recommend", content='{"user": "u7"}', headers={"content-type": "text/plain"})
    assert plain.status_code == 422
    assert "application/json" in plain.json()["error"]


def test_bodies_are_bounded_whatever_their_header_says(bundle):
    with running(bundle, limits=Limits(body_bytes=2000)) as client:
        large = json.dumps({"text": "x" * 5000}).encode()
        headers = {"content-type": "application/json"}
        assert client.post("/v1/search", content=large, headers=headers).status_code == 413
        chunks = (large[start : start + 500] for start in range(0, len(large), 500))
        assert client.post("/v1/search", content=chunks, headers=headers).status_code == 413
        assert client.post("/v1/search", json={"text": "the comet"}).status_code == 200


def test_the_token_is_asked_of_everything_but_health_and_page(bundle):
    with running(bundle, token="s3cret") as client:
        assert client.get("/v1/health").status_code == 200
        assert client.get("/").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            answer = client.get("/v1/ready", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/v1/ready", headers={"Authorization": "Bearer s3cret"}).status_code == 200


def test_too_many_requests_wait(bundle):
    with running(bundle, limits=Limits(requests_per_second=0.001, burst=700)) as client:
        statuses = [client.get("/v1/ready").status_code for _ in range(701)]
        assert statuses[0] == 200
        assert statuses[-1] == 429
        assert client.get("/v1/health").status_code == 200


def test_before_it_is_ready_and_when_it_cannot_be():
    def broken():
        raise UserError("The bundle is damaged: copy it anew.")

    with TestClient(make_app(broken)) as client:
        assert client.get("/v1/health").status_code == 200
        time.sleep(0.2)
        answer = client.post("/v1/recommend", json={"user": "u7"})
        assert answer.status_code == 503
        assert "damaged" in answer.json()["error"]


def test_a_full_disk_is_503_and_loses_nothing(bundle, tmp_path):
    with running(bundle, tmp_path / "log.sqlite") as client:
        assert client.post("/v1/feedback", json={"user": "u7", "item": "i1", "rating": 5.0}).status_code == 200
        service = client.app.state.holder.service
        connection = service._journal._connection
        connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}")
        text = {"text": "comet " * 1500}
        statuses = [client.put(f"/v1/items/n{n}", json=text).status_code for n in range(5)]
        assert statuses[-1] == 503
        assert client.post("/v1/recommend", json={"user": "u7"}).status_code == 200
    log = Journal(tmp_path / "log.sqlite")
    acknowledged = 1 + statuses.count(200)
    assert len([one for one in log.read() if one[0] != "impression"]) == acknowledged
    log.close()


def test_metrics_count_clicks_by_group_and_name_nobody(client):
    shown = client.post("/v1/recommend", json={"user": "u9", "k": 3, "log": True}).json()["items"]
    client.post("/v1/feedback", json={"user": "u9", "item": shown[1]["item_id"], "click": True})
    text = client.get("/metrics").text
    assert f'ltrec_items_clicked{{group="{shown[1]["group"]}"}} 1.0' in text
    assert 'route="/v1/recommend"' in text
    assert "u9" not in text
    assert shown[1]["item_id"] + '"' not in text


def test_logs_hold_no_personal_data(client, caplog):
    with caplog.at_level(logging.INFO, LOG.name):
        client.post("/v1/recommend", json={"user": "u11", "k": 3})
        client.put("/v1/items/secret-item", json={"text": "the comet"})
        client.delete("/v1/items/secret-item")
        client.get("/nowhere/u11")
    lines = [json.loads(record.message) for record in caplog.records if record.name == LOG.name]
    assert [line["route"] for line in lines][:2] == ["/v1/recommend", "/v1/items/{item_id:path}"]
    assert {line["status"] for line in lines} == {200, 404}
    assert "u11" not in caplog.text
    assert "secret-item" not in caplog.text


def test_our_own_faults_show_no_traceback(client, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("inside matters")

    monkeypatch.setattr(client.app.state.holder.service, "similar", fail)
    answer = client.post("/v1/similar", json={"item": "i1"})
    assert answer.status_code == 500
    assert "inside matters" not in answer.text
    assert answer.json()["request_id"] in caplog.text
    assert "inside matters" in caplog.text


def test_the_description_has_examples(client):
    description = client.get("/openapi.json").json()
    assert {"/v1/recommend", "/v1/similar", "/v1/search", "/v1/items/{item_id}", "/v1/feedback", "/v1/ready"} <= set(
        description["paths"]
    )
    assert description["components"]["schemas"]["RecommendRequest"]["examples"]
