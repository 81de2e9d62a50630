# ruff: noqa: F811, F821
"""Known mistakes of 3.3, each in the place of the model answer's function it replaces."""

import torch._dynamo  # DDP and an optimiser's first step import it (3 s): before the ranks are forked, once for all

from llmkata.checks import misconception


@misconception(
    "device_by_rank",
    replaces="read_env",
    caught_by="test_read_env",
    feedback="RANK counts over all machines, LOCAL_RANK within one: on the second machine of eight GPUs rank 11 has no "
    "cuda:11. The device is cuda:<LOCAL_RANK>.",
)
def read_env(environ, cuda_devices):
    env = original(environ, cuda_devices)
    if env.device == "cpu" or env.world_size == 1:
        return env
    if env.rank >= cuda_devices:
        raise ValueError(f"LOCAL_RANK is {env.rank}, and this machine has {cuda_devices} CUDA devices")
    return DistEnv(env.rank, env.world_size, env.rank, env.backend, f"cuda:{env.rank}")


@misconception(
    "timeout_left_out",
    replaces="init_distributed",
    caught_by="test_init_distributed",
    feedback="timeout_s did not arrive: with the default a dead rank is waited for half an hour. init_process_group takes "
    "timeout=timedelta(seconds=...).",
)
def init_distributed(env, init_method=None, timeout_s=30.0):
    return original(env, init_method, 1800.0)


@misconception(
    "options_left_out",
    replaces="build_torch_ddp",
    caught_by="test_build_torch_ddp",
    feedback="DDP runs with its own defaults: bucket_cap_mb, find_unused_parameters, gradient_as_bucket_view and "
    "static_graph were not handed on.",
)
def build_torch_ddp(
    module, env, *, bucket_cap_mb=25.0, find_unused_parameters=False, gradient_as_bucket_view=True, static_graph=False
):
    return DistributedDataParallel(module.to(env.device))


@misconception(
    "same_shuffle_every_epoch",
    replaces="shard_indices",
    caught_by="test_shard_indices",
    feedback="Every epoch visits the data in the same order: the epoch is not in the seed of the permutation.",
)
def shard_indices(n, world_size, rank, *, epoch, seed, shuffle, drop_last):
    return original(n, world_size, rank, epoch=0, seed=seed, shuffle=shuffle, drop_last=drop_last)


@misconception(
    "consecutive_shards",
    replaces="shard_indices",
    caught_by="test_shard_indices",
    feedback="You gave each rank a consecutive stretch of the order. DistributedSampler deals the examples out one by one: "
    "rank r takes the r-th, the (r + W)-th, ...",
)
def shard_indices(n, world_size, rank, *, epoch, seed, shuffle, drop_last):
    order = original(n, 1, 0, epoch=epoch, seed=seed, shuffle=shuffle, drop_last=drop_last)
    each = n // world_size if drop_last else -(-n // world_size)
    return [order[i % n] for i in range(rank * each, (rank + 1) * each)]


@misconception(
    "first_layer_first",
    replaces="plan_buckets",
    caught_by="test_plan_buckets",
    feedback="Your first bucket holds the first layers, whose gradients backward makes last: nothing could be sent before "
    "its end. Begin with the last parameter.",
)
def plan_buckets(nbytes, cap_bytes, dtypes=None):
    last = len(nbytes) - 1
    flipped = original(nbytes[::-1], cap_bytes, None if dtypes is None else dtypes[::-1])
    return [[last - i for i in bucket] for bucket in flipped]


@misconception(
    "cap_exclusive",
    replaces="plan_buckets",
    caught_by="test_plan_buckets",
    feedback="A parameter that fills the bucket exactly to the cap still fits: the comparison is <=, not <.",
)
def plan_buckets(nbytes, cap_bytes, dtypes=None):
    return original(nbytes, cap_bytes - 1, dtypes)


@misconception(
    "no_initial_broadcast",
    replaces="BucketedDDP.__init__",
    caught_by="test_initial_broadcast",
    feedback="Equal gradients on unequal weights still diverge: the constructor must give all ranks the parameters and "
    "buffers of rank 0.",
)
def __init__(self, module, *, bucket_cap_mb=25.0, group=None):
    before = [t.detach().clone() for t in chain(module.parameters(), module.buffers())]
    original(self, module, bucket_cap_mb=bucket_cap_mb, group=group)
    with torch.no_grad():
        for t, value in zip(chain(module.parameters(), module.buffers()), before):
            t.copy_(value)


@misconception(
    "buffers_left_out",
    replaces="BucketedDDP.__init__",
    caught_by="test_initial_broadcast",
    feedback="The parameters are rank 0's, the buffers are not: the running statistics of a normalisation differ from rank "
    "to rank. Broadcast module.buffers() too.",
)
def __init__(self, module, *, bucket_cap_mb=25.0, group=None):
    before = [t.detach().clone() for t in module.buffers()]
    original(self, module, bucket_cap_mb=bucket_cap_mb, group=group)
    for t, value in zip(module.buffers(), before):
        t.copy_(value)


@misconception(
    "sum_not_mean",
    replaces="BucketedDDP.launch_next",
    caught_by="test_grads_equal_single_process",
    feedback="Your gradient is the sum over ranks: the effective learning rate grows with the number of GPUs. Divide by "
    "the world size.",
)
@torch.no_grad()
def launch_next(self):
    params = self.members[len(self.in_flight)]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in params])
    self.in_flight.append((flat, dist.all_reduce(flat, group=self.group, async_op=True)))


@misconception(
    "one_rank_short",
    replaces="BucketedDDP.finish_gradient_synchronization",
    caught_by="test_unused_and_frozen",
    feedback="A parameter without gradient on this rank kept none, though another rank used it: the replicas part. It "
    "takes the average as all others do.",
)
@torch.no_grad()
def finish_gradient_synchronization(self):
    without = [p for p in self.module.parameters() if p.grad is None]
    original(self)
    for p in without:
        p.grad = None


@misconception(
    "averages_over_users",
    replaces="BucketedDDP.finish_gradient_synchronization",
    caught_by="test_unused_and_frozen",
    feedback="You averaged over the ranks that had a gradient. The big batch's mean counts the others as zeros: divide by "
    "the number of all ranks.",
)
@torch.no_grad()
def finish_gradient_synchronization(self):
    params = [p for bucket in self.members for p in bucket]
    users = torch.tensor([float(p.grad is not None) for p in params])
    original(self)
    dist.all_reduce(users, group=self.group)
    for p, n in zip(params, users.tolist()):
        p.grad.mul_(self.world_size / max(n, 1.0))


@misconception(
    "per_parameter",
    replaces="BucketedDDP.launch_next",
    caught_by="test_payload",
    matches="calls",
    feedback="Right gradients, but one all-reduce for each parameter: each costs a latency of its own. Send a bucket as "
    "one flat tensor.",
)
@torch.no_grad()
def launch_next(self):
    params = self.members[len(self.in_flight)]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in params])
    flat /= self.world_size
    works = [dist.all_reduce(t, group=self.group, async_op=True) for t in flat.split([p.numel() for p in params])]

    class All:
        def wait(self):
            for work in works:
                work.wait()

    self.in_flight.append((flat, All()))


@misconception(
    "sent_in_double",
    replaces="BucketedDDP.launch_next",
    caught_by="test_payload",
    matches="bytes",
    feedback="Right gradients, twice the bytes: they were sent in float64. The network carries the gradients' own dtype.",
)
@torch.no_grad()
def launch_next(self):
    params = self.members[len(self.in_flight)]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in params])
    flat = flat.double() / self.world_size
    self.in_flight.append((flat, dist.all_reduce(flat, group=self.group, async_op=True)))


@misconception(
    "mean_of_means",
    replaces="global_token_loss",
    caught_by="test_global_token_loss",
    feedback="Each rank took the mean over its own tokens: a rank with 3 tokens weighed as much as one with 29. Divide by "
    "the tokens of all ranks.",
)
def global_token_loss(loss_sum, n_tokens, group=None):
    return loss_sum / max(n_tokens, 1)


@misconception(
    "averaged_twice",
    replaces="global_token_loss",
    caught_by="test_global_token_loss",
    feedback="Your gradient is W times too small: the average over ranks divides by W once more, so the loss of each rank "
    "is W · loss_sum / (tokens of all ranks).",
)
def global_token_loss(loss_sum, n_tokens, group=None):
    return original(loss_sum, n_tokens, group) / dist.get_world_size(group)


@misconception(
    "losses_sent_too",
    replaces="global_token_loss",
    caught_by="test_loss_collective",
    matches="calls",
    feedback="The sum of the losses was sent over the network too, and nobody needs it: the number of tokens is enough.",
)
def global_token_loss(loss_sum, n_tokens, group=None):
    everyone = loss_sum.detach().clone()
    dist.all_reduce(everyone, group=group)
    return original(loss_sum, n_tokens, group)


@misconception(
    "launch_when_ready",
    replaces="BucketedDDP.gradient_is_ready",
    caught_by="test_order_mismatch",
    feedback="You launch a bucket as soon as it is ready. Ranks whose graphs finish in another order then add up different "
    "buckets: launch in the order of the buckets.",
)
def gradient_is_ready(self, k):
    if not self.synchronising:
        return
    self.missing[k] -= 1
    if self.missing[k]:
        return
    # The buckets change places: the one that is ready is the next to be launched.
    at = len(self.in_flight)
    for values in (self.members, self.missing):
        values[at], values[k] = values[k], values[at]
    self.launch_next()


@misconception(
    "sync_in_hook",
    replaces="BucketedDDP.launch_next",
    caught_by="test_never_blocks",
    feedback="backward waits for the network at every bucket, so nothing overlaps: launch with async_op=True, and wait in "
    "finish_gradient_synchronization.",
)
def launch_next(self):
    original(self)
    self.in_flight[-1][1].wait()


@misconception(
    "reduce_after_backward",
    replaces="BucketedDDP.gradient_is_ready",
    caught_by="test_overlap",
    matches="buckets",
    feedback="Right gradients, but all communication starts when all computation is over. Launch a bucket from the hook of "
    "its last gradient.",
)
def gradient_is_ready(self, k):
    return None


@misconception(
    "no_sync_ignored",
    replaces="BucketedDDP.no_sync",
    caught_by="test_no_sync_traffic",
    matches="bytes",
    feedback="You communicated K times for one step: each micro-batch was exchanged, also inside no_sync.",
)
def no_sync(self):
    @contextmanager
    def eager():
        yield
        kept = [None if p.grad is None else p.grad.clone() for p in self.module.parameters()]
        self.finish_gradient_synchronization()
        for p, grad in zip(self.module.parameters(), kept):
            p.grad = grad

    return eager()


@misconception(
    "quiet_gradients_lost",
    replaces="BucketedDDP.no_sync",
    caught_by="test_no_sync_accumulation",
    feedback="What was added up inside no_sync is gone: only the last micro-batch was averaged. Leave `.grad` alone there, "
    "and send the sum.",
)
def no_sync(self):
    @contextmanager
    def forgetful():
        with original(self):
            yield
        for p in self.module.parameters():
            p.grad = None

    return forgetful()


def passed_round(tensor, group, own):
    """The ring, whose second phase begins with chunk `own`(rank)."""
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    if size == 1 or tensor.numel() == 0:
        return
    flat = tensor.contiguous().view(-1)
    chunks = flat.tensor_split(size)
    for step in range(2 * (size - 1)):
        reducing = step < size - 1
        first = rank - step if reducing else own(rank) - (step - size + 1)
        sent, received = chunks[first % size], chunks[(first - 1) % size]
        incoming = torch.empty_like(received)
        works = [dist.isend(sent, group=group, group_dst=(rank + 1) % size)] if sent.numel() else []
        if received.numel():
            works.append(dist.irecv(incoming, group=group, group_src=(rank - 1) % size))
        for work in works:
            work.wait()
        if reducing:
            received += incoming
        else:
            received.copy_(incoming)
    tensor.copy_(flat.view(tensor.shape))


@misconception(
    "ring_off_by_one",
    replaces="ring_all_reduce",
    caught_by="test_ring_all_reduce",
    feedback="You are passing round partial sums: after the first phase rank r owns chunk (r + 1) mod W, and the second "
    "begins with that one.",
)
@torch.no_grad()
def ring_all_reduce(tensor, group=None):
    passed_round(tensor, group, lambda rank: rank)


@misconception(
    "copy_is_summed",
    replaces="ring_all_reduce",
    caught_by="test_ring_all_reduce",
    feedback="A tensor that is not contiguous kept its values: the sum went into a copy. Write it back into the tensor.",
)
@torch.no_grad()
def ring_all_reduce(tensor, group=None):
    if tensor.is_contiguous():
        original(tensor, group)
    else:
        original(tensor.contiguous(), group)


@misconception(
    "all_to_all",
    replaces="ring_all_reduce",
    caught_by="test_ring_bytes",
    matches="bytes",
    feedback="Right sums, but each rank sent the whole tensor to all others: (W - 1) n bytes, where a ring sends less than "
    "2n however many ranks there are.",
)
@torch.no_grad()
def ring_all_reduce(tensor, group=None):
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    if size == 1 or tensor.numel() == 0:
        return
    mine = tensor.contiguous()
    others = [r for r in range(size) if r != rank]
    incoming = {r: torch.empty_like(mine) for r in others}
    works = [dist.isend(mine, group=group, group_dst=r) for r in others]
    works += [dist.irecv(incoming[r], group=group, group_src=r) for r in others]
    for work in works:
        work.wait()
    for r in others:
        tensor += incoming[r]


@misconception(
    "one_phase_counted",
    replaces="communication_report",
    caught_by="test_communication_report",
    feedback="You counted one trip round the ring. There are two: partial sums travel W - 1 steps, and the finished chunks "
    "W - 1 more.",
)
def communication_report(nbytes, world_size, cap_bytes):
    report = original(nbytes, world_size, cap_bytes)
    report["ring_bytes_per_rank"] = (world_size - 1) * report["payload_bytes"] // world_size
    report["ring_messages_per_rank"] //= 2
    return report


@misconception(
    "module_prefix_saved",
    replaces="save_checkpoint",
    caught_by="test_checkpoint",
    feedback="Your checkpoint only loads into DDP: its keys begin with `module.`. Save the state dict of the module inside.",
)
def save_checkpoint(path, model, optimizer, step):
    class AsItIs:
        def state_dict(self):
            return model.state_dict()

    return original(path, AsItIs(), optimizer, step)


@misconception(
    "nobody_waits",
    replaces="save_checkpoint",
    caught_by="test_checkpoint",
    feedback="The other ranks went on before the file was there. All wait for rank 0: dist.barrier().",
)
def save_checkpoint(path, model, optimizer, step):
    if not dist.is_initialized() or dist.get_rank() == 0:
        bare = model.module if isinstance(model, BucketedDDP | DistributedDataParallel) else model
        torch.save({"model": bare.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, path)


@misconception(
    "unwrapped_by_name",
    replaces="save_checkpoint",
    caught_by="test_checkpoint",
    feedback="A bare model may have a child of its own that is called `module`, and you saved that child alone. Unwrap by "
    "type, not by the presence of an attribute.",
)
def save_checkpoint(path, model, optimizer, step):
    return original(path, getattr(model, "module", model), optimizer, step)


def trained(env, build_model, dataset, impl, steps, micro_batches, batch_size, lr, seed, divisors):
    """The model answer, with a divisor of its own for each micro-batch."""
    model = build_model().to(env.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    traffic = Traffic()
    if impl == "torch":
        wrapped = build_torch_ddp(model, env)
        wrapped.register_comm_hook(traffic, counted_all_reduce)
    else:
        wrapped = BucketedDDP(model)
    stream = rank_stream(len(dataset), env, seed)
    losses = []
    for _ in range(steps):
        batches = [[dataset[i] for i in islice(stream, batch_size)] for _ in range(micro_batches)]
        optimizer.zero_grad()
        step_loss = torch.zeros((), dtype=torch.float64)
        for batch, n_tokens in zip(batches[:-1], divisors(batches)):
            with wrapped.no_sync():
                step_loss += add_gradient(wrapped, batch, n_tokens)
        step_loss += add_gradient(wrapped, batches[-1], divisors(batches)[-1])
        if impl == "bucketed":
            wrapped.finish_gradient_synchronization()
            traffic.collectives += len(wrapped.buckets)
            traffic.bytes += sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        optimizer.step()
        dist.all_reduce(step_loss)
        losses.append(float(step_loss) / env.world_size)
    return {"losses": losses, "bytes": traffic.bytes, "collectives": traffic.collectives}


@misconception(
    "micro_batches_averaged",
    replaces="train",
    caught_by="test_train",
    feedback="Each micro-batch was divided by its own tokens and their means were averaged. Count the tokens of all "
    "micro-batches of the step first, and divide each by that.",
)
def train(env, build_model, dataset, *, impl, steps, micro_batches, batch_size, lr, seed):
    return trained(
        env, build_model, dataset, impl, steps, micro_batches, batch_size, lr, seed,
        lambda batches: [len(batches) * count_tokens(batch) for batch in batches],
    )  # fmt: skip
