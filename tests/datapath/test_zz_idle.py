import time
def test_idle(datapath):
    time.sleep(12)
    assert datapath.reasons() == {}
