"use strict";
page.mount();
