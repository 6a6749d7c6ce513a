import "@patternfly/react-core/dist/styles/base.css";
import "./page.css";
import { createRoot } from "react-dom/client";
import { Page } from "./page";
import { followTheme } from "./theme";

document.documentElement.lang = cockpit.language.replace("_", "-");
followTheme();
const place = document.getElementById("app");
if (place)
    createRoot(place).render(<Page />);
