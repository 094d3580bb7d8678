"""Settings: one by one, as text and as rows."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given

from lvsxdp import config, dumping, setting
from lvsxdp.errors import ConfigError
from lvsxdp.model import Config, Settings
from tests.unit import strategies


def test_every_setting_of_the_model_has_a_name_a_text_and_a_default() -> None:
    assert [field.name for field in dataclasses.fields(Settings)] == list(setting.BY_NAME)
    assert [row["default"] for row in setting.rows(Settings())[: len(setting.SETTINGS)]] == [
        *(True, False, 1, True, False, False, False, 0, 0, 10, 900, 120, 300, 86400, 86400, True),
        *("", "1024-65535"),
    ]


def test_ipvss_own_defaults_differ_in_one() -> None:
    differ = [row["name"] for row in setting.rows(Settings()) if row["default"] != row["ipvs"]]
    assert differ == ["expire_nodest_conn"]


def test_the_timeouts_that_cannot_be_set_are_listed_after_the_settings() -> None:
    rows = {row["name"]: row for row in setting.rows(Settings(timeout_tcp=7))}
    assert rows["timeout_tcp"]["value"] == 7
    assert rows["timeout_syn_recv"] == {
        "name": "timeout_syn_recv",
        **{"value": 60, "default": 60, "ipvs": 60, "can_be_set": False},
    }
    assert "timeout_established" not in rows


def test_assignments_change_what_they_name() -> None:
    before = Settings(conn_reuse_mode=2, timeout_udp=5)
    after = setting.assigned(before, ["secure_tcp=3", "timeout_tcp=60", "sloppy_tcp=yes"])
    assert after == dataclasses.replace(before, secure_tcp=3, timeout_tcp=60, sloppy_tcp=True)


def test_a_timeout_of_0_stays() -> None:
    before = Settings(timeout_tcp=5, timeout_tcpfin=6, timeout_udp=7)
    assignments = ["timeout_tcp=0", "timeout_tcpfin=0", "timeout_udp=8"]
    assert setting.assigned(before, assignments) == dataclasses.replace(before, timeout_udp=8)


def test_timeouts_are_those_of_ipvs_but_for_what_is_set() -> None:
    found = setting.timeouts(Settings(timeout_tcp=5, timeout_tcpfin=6, timeout_udp=7))
    assert found == setting.TIMEOUTS | {"established": 5, "fin_wait": 6, "udp": 7}


@given(strategies.CONFIGS)
def test_what_save_writes_of_settings_is_what_is_read(drawn: Config) -> None:
    only = Config(settings=drawn.settings, interfaces=("eth0",))
    assert config.load(dumping.dump(only))[0].settings == drawn.settings


@pytest.mark.parametrize("mode", ["1", "2"])
def test_an_automatic_mode_of_secure_tcp_is_refused_in_words(mode: str) -> None:
    with pytest.raises(ConfigError, match=r"modes that IPVS switches by the memory"):
        config.load(f"settings: {{secure_tcp: {mode}}}")
