"""The shop's order service: a small REST service. Agents reach it as tools, through a gateway, by its OpenAPI document.

It knows nothing of agents. Every call bears the customer's own token; it shows a customer his own orders and no others.
It writes each call to standard output, one JSON object a line, with who called.

    ORDER_SERVICE_ISSUER     the OpenID provider that signs the customers' tokens
    ORDER_SERVICE_JWKS_URL   its keys
    ORDER_SERVICE_AUDIENCE   whom the tokens must be for
"""

import json
import os
from functools import cache
from pathlib import Path
from typing import Annotated

import jwt
from fastapi import Depends, FastAPI, HTTPException
from fastapi import Path as InPath
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field

ORDERS = {order["order_id"]: order for order in json.loads(Path(__file__).with_name("orders.json").read_text())}
REFUNDS: dict[str, "Refund"] = {}

app = FastAPI(title="Order service", version="1.0.0")


class Order(BaseModel):
    order_id: str
    item: str
    total: int = Field(description="Euros.")
    status: str
    carrier: str
    expected: str = Field(description="Day of delivery.")


class RefundRequest(BaseModel):
    amount: int = Field(gt=0, description="Euros to pay back.")
    reason: str = Field(min_length=3, max_length=500, description="Why the customer wants the money back.")


class Refund(BaseModel):
    refund_id: str
    order_id: str
    amount: int
    status: str


@cache
def signing_keys() -> jwt.PyJWKClient:
    return jwt.PyJWKClient(os.environ["ORDER_SERVICE_JWKS_URL"])


def customer(credentials: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
    """Who calls, as his verified token says."""
    try:
        claims = jwt.decode(
            credentials.credentials,
            signing_keys().get_signing_key_from_jwt(credentials.credentials),
            algorithms=["RS256", "ES256"],
            audience=os.environ["ORDER_SERVICE_AUDIENCE"],
            issuer=os.environ["ORDER_SERVICE_ISSUER"],
        )
    except jwt.PyJWTError as error:
        raise HTTPException(401, f"The token is not accepted: {error}") from error
    return claims.get("preferred_username") or claims["sub"]


Customer = Annotated[str, Depends(customer)]
OrderId = Annotated[str, InPath(pattern=r"^[A-Z]-\d{4}$", description="The number of the order, such as A-1001.")]


def order_of(caller: str, order_id: str, operation: str) -> dict:
    """The order, if it is this customer's; another's is as unknown as one that does not exist."""
    order = ORDERS.get(order_id)
    known = order is not None and order["customer"] == caller
    print(json.dumps({"operation": operation, "customer": caller, "order_id": order_id, "known": known}), flush=True)
    if not known:
        raise HTTPException(404, f"You have no order {order_id}.")
    return order


@app.get(
    "/orders/{order_id}",
    operation_id="get_order_status",
    summary="Status of an order: where it is, when it comes",
)
def get_order_status(order_id: OrderId, caller: Customer) -> Order:
    return Order.model_validate(order_of(caller, order_id, "get_order_status"))


@app.post(
    "/orders/{order_id}/refunds",
    operation_id="request_refund",
    status_code=201,
    summary="Request a refund: give money back for an order",
)
def request_refund(order_id: OrderId, request: RefundRequest, caller: Customer) -> Refund:
    """Asking again changes nothing."""
    order = order_of(caller, order_id, "request_refund")
    if order["status"] != "delivered":
        raise HTTPException(409, f"Order {order_id} is {order['status']}: it can be refunded once it is delivered.")
    if request.amount > order["total"]:
        raise HTTPException(409, f"Order {order_id} cost {order['total']} euros; no more can be paid back.")
    refund = Refund(refund_id=f"R-{order_id}", order_id=order_id, amount=request.amount, status="requested")
    return REFUNDS.setdefault(order_id, refund)
