"""Who comes first: priorities, and fair shares of clients."""

from hand_stepped import busy, make_job, make_worker, prompt_of, run, submit, tokens_of


def test_a_lower_number_goes_first():
    worker = make_worker(pages=200, max_running=1)
    jobs = [make_job(prompt_of(4, i), 3, priority=p) for i, p in enumerate((5, 1, 3))]
    for job in jobs:
        worker.submit(job)
    order = []
    while busy(worker):
        worker.serve()
        order += [j for j in worker.scheduler.running if j not in order]
    assert order == [jobs[1], jobs[2], jobs[0]]


def test_one_of_higher_priority_takes_the_place_of_a_running_one():
    worker = make_worker(pages=200, max_running=2)
    low = [make_job(prompt_of(4, i), 40, priority=1) for i in range(2)]
    for job in low:
        submit(worker, job)
    urgent = make_job(prompt_of(4, 7), 3, priority=0)
    submit(worker, urgent)
    assert worker.scheduler.running == [urgent, low[0]]
    run(worker)
    assert low[0].preemptions == 0 and low[1].preemptions == 1
    assert [len(tokens_of(job)) for job in (*low, urgent)] == [40, 40, 3]


def test_a_client_with_many_requests_does_not_keep_out_one_with_few():
    worker = make_worker(pages=400, max_running=2)
    many = [make_job(prompt_of(30, i), 10, client="many") for i in range(12)]
    for job in many:
        worker.submit(job)
    for _ in range(5):
        worker.serve()
    few = make_job(prompt_of(30, 99), 10, client="few")
    worker.submit(few)
    while not few.produced:
        worker.serve()
    assert sum(job.produced == 10 for job in many) <= 4  # it came next, not thirteenth
    run(worker)
    assert all(len(tokens_of(job)) == 10 for job in (*many, few))


def test_clients_share_alike():
    worker = make_worker(pages=400, max_running=1)
    for i in range(12):
        worker.submit(make_job(prompt_of(20, i), 5, client="ab"[i >= 6]))
    order = []
    while busy(worker):
        worker.serve()
        order += [j for j in worker.scheduler.running if j not in order]
    assert "".join(job.client for job in order) in ("abababababab", "aabababababb")
