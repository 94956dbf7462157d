"""Answer the chats of a data set with Ray Data: each worker has a model, which computes a batch of them together.

usage: ray_data.py CHATS.jsonl FOLDER [MODEL [WORKERS]]; a line of CHATS has `messages`, those of FOLDER `answer` as well
"""

import sys

import ray

from qtransformers import Model


class Answers:
    """What a worker keeps between its batches."""

    def __init__(self, model):
        self.model = Model.from_pretrained(model, threads=1)

    def __call__(self, batch):
        chats = batch["messages"].to_pylist()
        streams = [self.model.chat(chat, stream=True, max_tokens=64, temperature=0) for chat in chats]
        for stream in streams:
            stream.start(run_ahead=64)
        return batch.append_column("answer", [[stream.read().text for stream in streams]])


chats, folder = sys.argv[1:3]
model, workers = (*sys.argv[3:], *("demo", "2")[len(sys.argv) - 3 :])
ray.init(include_dashboard=False)
# Reading and writing take no core: the workers may have all, and would wait for ever for what they are given.
read = ray.data.read_json(chats, num_cpus=0)
answered = read.map_batches(
    Answers,
    fn_constructor_args=(model,),
    compute=ray.data.ActorPoolStrategy(size=int(workers)),
    batch_size=32,
    batch_format="pyarrow",
    num_cpus=1,
)
answered.write_json(folder, ray_remote_args={"num_cpus": 0})
