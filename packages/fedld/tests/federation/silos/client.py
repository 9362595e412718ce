"""The client: as the package makes it, but for the faults."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from offprints.fedld import client_app
from silos.faults import FAULTS, after, before
from silos.task import CONFIG, SEED, data_fn, model_fn

sound = client_app(model_fn, data_fn, config=CONFIG, device="cpu", seed=SEED)
app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    fault = FAULTS.get((context.node_config["partition-id"], message.content["config"]["server-round"]))
    before(fault)
    reply = sound(message, context)
    after(fault, reply)
    return reply
