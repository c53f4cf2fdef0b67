"""Who comes first: priorities, and fair shares of clients."""

from hand_stepped import busy, make_request, make_worker, prompt_of, run, submit, tokens_of


def test_a_lower_number_goes_first():
    worker = make_worker(pages=200, max_running=1)
    requests = [make_request(prompt_of(4, i), 3, priority=p) for i, p in enumerate((5, 1, 3))]
    for request in requests:
        worker.submit(request)
    order = []
    while busy(worker):
        worker.serve()
        order += [s for s in worker.scheduler.running if s not in order]
    assert order == [requests[i].sequence for i in (1, 2, 0)]


def test_one_of_higher_priority_takes_the_place_of_a_running_one():
    worker = make_worker(pages=200, max_running=2)
    low = [make_request(prompt_of(4, i), 40, priority=1) for i in range(2)]
    for request in low:
        submit(worker, request)
    urgent = make_request(prompt_of(4, 7), 3, priority=0)
    submit(worker, urgent)
    assert worker.scheduler.running == [urgent.sequence, low[0].sequence]
    run(worker)
    assert low[0].sequence.preemptions == 0 and low[1].sequence.preemptions == 1
    assert [len(tokens_of(request)) for request in (*low, urgent)] == [40, 40, 3]


def test_a_client_with_many_requests_does_not_keep_out_one_with_few():
    worker = make_worker(pages=400, max_running=2)
    many = [make_request(prompt_of(30, i), 10, client="many") for i in range(12)]
    for request in many:
        worker.submit(request)
    for _ in range(5):
        worker.serve()
    few = make_request(prompt_of(30, 99), 10, client="few")
    worker.submit(few)
    while not few.produced:
        worker.serve()
    assert sum(request.produced == 10 for request in many) <= 4  # it came next, not thirteenth
    run(worker)
    assert all(len(tokens_of(request)) == 10 for request in (*many, few))


def test_clients_share_alike():
    worker = make_worker(pages=400, max_running=1)
    for i in range(12):
        worker.submit(make_request(prompt_of(20, i), 5, client="ab"[i >= 6]))
    order = []
    while busy(worker):
        worker.serve()
        order += [s for s in worker.scheduler.running if s not in order]
    assert "".join(sequence.client for sequence in order) in ("abababababab", "aabababababb")
