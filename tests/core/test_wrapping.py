from lightning_reg.core.wrapping import around


class Owner:
    def method(self, value):
        return value + 1


def doubled(call, value):
    return 2 * call(value)


def negated(call, value):
    return -call(value)


def test_the_latest_layer_is_outermost_and_any_may_go_first():
    for first_to_go in (0, 1):
        owner = Owner()
        handles = [around(owner, "method", doubled), around(owner, "method", lambda call, value: 3 + call(value))]
        assert owner.method(1) == 7
        handles[first_to_go].remove()
        assert owner.method(1) == (5 if first_to_go == 0 else 4)
        handles[1 - first_to_go].remove()
        assert owner.method(1) == 2
        assert vars(owner) == {}


def test_what_stood_on_the_instance_is_put_back():
    owner = Owner()
    vars(owner)["method"] = own = lambda value: value
    handle = around(owner, "method", negated)
    assert owner.method(1) == -1
    handle.remove()
    assert vars(owner) == {"method": own}
