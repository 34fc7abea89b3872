"""Answers with what it was sent."""

from bedrock_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()


@app.entrypoint
def invoke(payload, context):
    return {"payload": payload, "session": context.session_id}


if __name__ == "__main__":
    app.run()
